"""How an endpoint's latencies depend on the request rate: `search` for its capacity, or a `sweep` over given rates."""
