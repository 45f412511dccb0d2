"""Which replicas exist: the membership that one controller owns and every gateway reads."""
