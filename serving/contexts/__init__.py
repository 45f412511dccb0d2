"""Contexts: running requests, the legs they run on, and the client that moves them between engines."""
