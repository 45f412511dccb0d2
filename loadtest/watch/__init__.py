"""Looks at the server while a load runs: its Prometheus metrics, and the GPUs of this machine. All of it is optional.

`watcher` does the looking, in a thread of its own; `types` say what it saw, `exposition` reads it, `summary` sums it
up. The last three are pure.
"""
