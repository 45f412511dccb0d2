"""The highest rate that keeps the goals, for many configurations at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from planner.queueing.costs import Bools, Floats, Number
from planner.queueing.goals import Goal, Metric
from planner.types import PlannerError

HALVINGS = 10


class Estimate(Protocol):
    """What `prefill_pool`, `mixed_engine` and `decode_engine` answer."""

    @property
    def load(self) -> Floats: ...

    @property
    def fits(self) -> Bools: ...

    def exceeds(self, metric: Metric, limit_s: Number) -> Floats: ...


def meets(estimate: Estimate, goals: Sequence[Goal]) -> Bools:
    """Which configurations keep every goal and their own caps."""
    met = estimate.fits
    for goal in goals:
        met = met & (estimate.exceeds(goal.metric, goal.limit_s) <= 1 - goal.share)
    return met


def max_rate_rps(
    estimate_at: Callable[[Number], Estimate], goals: Sequence[Goal], *, halvings: int = HALVINGS
) -> Floats:
    """The highest rate at which `estimate_at(rate)` meets all goals; 0 where none does. Requests per second.

    Exact to 2^-`halvings` of the rate at full load: a thousandth, by default.

    Load is linear in the rate, so the estimate at one request per second tells the rate at full load. Halving below
    it works where percentiles rise with the rate; where one dips, the rate found still keeps the goals.
    """
    load = np.atleast_1d(estimate_at(1.0).load)
    if not np.all(load > 0):
        raise PlannerError(
            "step costs",
            "prefill_token_s",
            0.0,
            "a request must cost something",
            "give the costs per token or sequence",
        )
    low, high = np.zeros_like(load), 1 / load
    for _ in range(halvings):
        middle = (low + high) / 2
        met = meets(estimate_at(middle), goals)
        low, high = np.where(met, middle, low), np.where(met, high, middle)
    return low
