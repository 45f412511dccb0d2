"""Engines: one real vLLM engine core per replica, and the message interface that gateways speak to it."""
