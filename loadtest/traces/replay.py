"""What is done to a trace before it is replayed. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loadtest.arrivals import Seconds, thin
from planner import RequestTrace, TraceRequest


def thinned(trace: RequestTrace, keep: float, rng: np.random.Generator) -> RequestTrace:
    """Keep this share of the sessions, each whole and with its sub-agents."""
    keys = [_root(one) if one.session else number for number, one in enumerate(trace.requests)]
    stays = thin(keys, keep, rng)
    return replace(trace, requests=tuple(one for one, stay in zip(trace.requests, stays, strict=True) if stay))


def limited(trace: RequestTrace, count: int | None, duration_s: float | None) -> RequestTrace:
    """The first `count` requests, and only those before `duration_s`."""
    requests = [one for one in trace.requests if duration_s is None or one.at_s < duration_s]
    return replace(trace, requests=tuple(requests[:count]))


def spread_out(trace: RequestTrace, begins_s: Seconds) -> RequestTrace:
    """Let sessions that were recorded apart begin at these times, in their order; each keeps its own times."""
    first_s: dict[str, float] = {}
    for one in trace.requests:
        first_s.setdefault(_root(one), one.at_s)
    begin_of = dict(zip(first_s, begins_s.tolist(), strict=True))
    moved = [replace(one, at_s=one.at_s - first_s[_root(one)] + begin_of[_root(one)]) for one in trace.requests]
    return replace(trace, requests=tuple(sorted(moved, key=lambda one: one.at_s)))


def _root(one: TraceRequest) -> str:
    """A sub-agent goes where its session goes."""
    return one.session.partition("/")[0]
