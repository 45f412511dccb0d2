"""Which replica a leg goes to: a pure choice over the loads that the gateway knows."""
