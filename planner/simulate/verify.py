"""Does this fleet meet these goals? Simulates longer and longer until that is clear, or the longest run is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy.typing as npt

from planner.queueing.goals import Goal
from planner.simulate.fleet import Fleet
from planner.simulate.outcome import Interval, Outcome
from planner.simulate.requests import draw_arrivals, draw_requests
from planner.simulate.run import run_open

FIRST_RUN, GROWTH = 1_000, 3
MIN_LATE_ANSWERS = 20
"""A percentile is believed once so many requests lie above it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`clear`: each goal's interval keeps to one side of what is demanded, or one goal is surely missed."""

    met: bool
    clear: bool
    shares: tuple[Interval, ...]  # of requests within each goal's limit
    outcome: Outcome


def verify(
    fleet: Fleet,
    sample: npt.ArrayLike,
    goals: Sequence[Goal],
    *,
    rate_rps: float,
    arrival_scv: float = 1.0,
    prefix_share: float = 0.0,
    block_size_tokens: int = 16,
    seed: int = 0,
    most_requests: int = 30_000,
) -> Verdict:
    """The verdict at `rate_rps`. Equal seeds give rival fleets equal requests at equal relative times."""
    count = min(FIRST_RUN, most_requests)
    while True:
        requests = draw_requests(
            sample, count, seed=seed, prefix_share=prefix_share, block_size_tokens=block_size_tokens
        )
        arrivals = draw_arrivals(count, rate_rps=rate_rps, arrival_scv=arrival_scv, seed=seed)
        verdict = judge(run_open(fleet, replace(requests, arrival_s=arrivals), seed=seed), goals)
        if verdict.clear or count >= most_requests:
            return verdict
        count = min(count * GROWTH, most_requests)


def judge(outcome: Outcome, goals: Sequence[Goal]) -> Verdict:
    """Whether the outcome meets the goals, and whether a longer run could tell otherwise."""
    shares = tuple(outcome.met_share(goal.metric, goal.limit_s) for goal in goals)
    pairs = list(zip(goals, shares, strict=True))
    missed = any(found.high < goal.share for goal, found in pairs)
    enough = all(len(outcome.sent_s) * (1 - goal.share) >= MIN_LATE_ANSWERS for goal in goals)
    clear = missed or (enough and all(found.low >= goal.share for goal, found in pairs))
    return Verdict(
        met=all(found.value >= goal.share for goal, found in pairs), clear=clear, shares=shares, outcome=outcome
    )
