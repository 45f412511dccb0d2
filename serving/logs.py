"""Our loggers in Ray Serve's replicas, whose log files and streams have only what Ray's own logger says."""

from __future__ import annotations

import logging


def join_ray_log() -> None:
    """Let what this package logs go where `ray.serve` does. Called in each replica, once."""
    ours, rays = logging.getLogger("serving"), logging.getLogger("ray.serve")
    ours.setLevel(logging.INFO)
    ours.handlers, ours.propagate = list(rays.handlers), False
