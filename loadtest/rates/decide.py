"""Which rate to try next, and when the capacity is known well enough: decided from the runs so far. Pure.

Capacity is the highest request rate at which the wanted share of requests meets the SLO. First it is bracketed by brief
runs: the rate is doubled, or halved, until the verdict changes, then halved in between; a sequential test ends each
verdict as soon as it is clear. Then longer runs go where the fit says the capacity is, a little above it and a little
below in turn, until its confidence interval is narrow enough: a bisection that bears noise.

Run k of a search draws its arrivals and prompts from the k-th seed of one list. So searches with one seed meet the same
traffic, run by run, and yet the runs of one search are independent of each other, which the interval needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtest.rates.capacity import Fit, Run, fit
from loadtest.rates.sequential import Batch, Side, dispersion, side, total

FACTOR = 2.0
# A bracket this narrow is refined: the fit's window holds both its ends.
CLOSE = 1.3
LOOKS = 3
MIN_FULL_RUNS, MIN_FULL_TO_FIT = 4, 2
# How far beside the fitted capacity runs are made: near enough for a straight line, far enough to see its slope.
MIN_SPREAD, MAX_SPREAD = 0.02, 0.10
INVALID_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Goal:
    """What is searched."""

    wanted: float
    """The share of requests that must meet the SLO; between 0 and 1, both excluded."""
    start_rps: float = 1.0
    min_rps: float = 0.01
    max_rps: float = math.inf
    precision: float = 0.05
    """The longer arm of the confidence interval at the end, relative to the capacity."""
    confidence: float = 0.95
    max_runs: int = 100


@dataclass(frozen=True, slots=True)
class Probe:
    """A run that was made. An invalid one, where the client was the limit, says nothing of the server."""

    run: Run
    brief: bool
    valid: bool = True


class Ending(StrEnum):
    """Why a search is over."""

    FOUND = "found"
    ALL_MEET = "the SLO is met at the highest rate allowed"
    NONE_MEETS = "the SLO is missed at the lowest rate allowed"
    CLIENT_LIMIT = "the client was the limit"
    RUNS_SPENT = "the runs allowed are spent"
    TIME_SPENT = "the time allowed is spent"
    INTERRUPTED = "interrupted"
    NOT_SERVED = "the server did not serve"
    NO_LOAD = "the next load could not be made"


@dataclass(frozen=True, slots=True)
class Try:
    """The next run."""

    rate_rps: float
    brief: bool


@dataclass(frozen=True, slots=True)
class Done:
    ending: Ending


@dataclass(frozen=True, slots=True)
class Bracket:
    """The highest rate that met the SLO below the lowest that missed it; 0 and infinity where there is none yet."""

    low_rps: float
    high_rps: float
    open_rps: float | None
    """A rate whose verdict needs another look."""

    @property
    def closed(self) -> bool:
        return self.high_rps <= CLOSE * self.low_rps and self.open_rps is None


def decide(probes: Sequence[Probe], goal: Goal) -> Try | Done:
    """From the probes in the order in which they were made. The last run allowed may be the one that tells."""
    step = _decide(probes, goal)
    return Done(Ending.RUNS_SPENT) if isinstance(step, Try) and len(probes) >= goal.max_runs else step


def _decide(probes: Sequence[Probe], goal: Goal) -> Try | Done:
    """However many runs are allowed."""
    spoilt = _invalid_at_the_end(probes)
    if spoilt >= INVALID_IN_A_ROW:
        return Done(Ending.CLIENT_LIMIT)
    if spoilt:
        return Try(probes[-1].run.rate_rps, probes[-1].brief)
    found = bracket(probes, goal)
    if not found.closed:
        return _narrow(found, goal)
    return _refine(probes, goal)


def bracket(probes: Sequence[Probe], goal: Goal) -> Bracket:
    """From the brief runs alone: later ones, close to the capacity, may fall on either side by chance."""
    brief = [probe.run for probe in probes if probe.brief and probe.valid]
    scatter = dispersion(run.batches for run in brief)
    looks: dict[float, list[Run]] = {}
    for run in brief:
        looks.setdefault(run.rate_rps, []).append(run)
    sides = {rate_rps: _verdict(runs, goal.wanted, scatter) for rate_rps, runs in looks.items()}
    missed = [rate_rps for rate_rps, verdict in sides.items() if verdict is Side.MISSED]
    high_rps = min(missed, default=math.inf)
    met = [rate_rps for rate_rps, verdict in sides.items() if verdict is Side.MET and rate_rps < high_rps]
    open_rps = next((rate_rps for rate_rps, verdict in sides.items() if verdict is Side.OPEN), None)
    return Bracket(max(met, default=0.0), high_rps, open_rps)


def capacity(probes: Sequence[Probe], goal: Goal) -> Fit | None:
    """The capacity as far as it is known; None before it is bracketed."""
    found = bracket(probes, goal)
    if not found.low_rps or math.isinf(found.high_rps):
        return None
    every, runs = [probe.run for probe in probes if probe.valid], fitted(probes)
    known: Fit | None = None
    centre_rps = math.sqrt(found.low_rps * found.high_rps)
    for _ in range(3):  # the window follows the capacity
        near = fit(runs, goal.wanted, centre_rps, goal.confidence)
        known = near or fit(every, goal.wanted, centre_rps, goal.confidence) or known
        if known is not None:
            centre_rps = known.rate_rps
    return known


def fitted(probes: Sequence[Probe]) -> list[Run]:
    """The full runs, as soon as there are some: where a queue takes a while to grow, brief ones flatter the server."""
    full = _full(probes)
    return full if len(full) >= MIN_FULL_TO_FIT else [probe.run for probe in probes if probe.valid]


def _verdict(runs: Sequence[Run], wanted: float, scatter: float) -> Side:
    """OPEN asks for another look. In the end the share decides: the runs that follow will put a mistake right."""
    due, met = total(batch for run in runs for batch in run.batches)
    verdict = side(due, met, wanted, scatter)
    if verdict is not Side.OPEN:
        return verdict
    if due and met == due:
        return Side.MET
    if len(runs) < LOOKS:
        return Side.OPEN
    return Side.MET if due and met >= wanted * due else Side.MISSED


def _narrow(found: Bracket, goal: Goal) -> Try | Done:
    if found.open_rps is not None:
        return Try(found.open_rps, brief=True)
    if not found.low_rps and math.isinf(found.high_rps):
        return Try(min(max(goal.start_rps, goal.min_rps), goal.max_rps), brief=True)
    if math.isinf(found.high_rps):
        if found.low_rps >= goal.max_rps:
            return Done(Ending.ALL_MEET)
        return Try(min(found.low_rps * FACTOR, goal.max_rps), brief=True)
    if not found.low_rps:
        if found.high_rps <= goal.min_rps:
            return Done(Ending.NONE_MEETS)
        return Try(max(found.high_rps / FACTOR, goal.min_rps), brief=True)
    return Try(math.sqrt(found.low_rps * found.high_rps), brief=True)


def _refine(probes: Sequence[Probe], goal: Goal) -> Try | Done:
    known = capacity(probes, goal)
    assert known is not None  # both ends of the bracket are within the window
    full = _full(probes)
    if len(full) >= MIN_FULL_RUNS and known.half_width <= goal.precision:
        return Done(Ending.FOUND)
    spread = _spread(full, goal.wanted, known.half_width)
    rate_rps = known.rate_rps * (1 + spread if len(full) % 2 else 1 - spread)
    return Try(min(max(rate_rps, goal.min_rps), goal.max_rps), brief=False)


def _full(probes: Sequence[Probe]) -> list[Run]:
    return [probe.run for probe in probes if probe.valid and not probe.brief]


def _spread(full: Sequence[Run], wanted: float, half_width: float) -> float:
    """How far beside the capacity the next run is made, relative to it: half as far as the interval reaches, or nearer.

    Runs on either side of a cliff come out as expected again and again, and say nothing of where it is. So each pair of
    which the lower met the SLO and the upper missed it halves the distance, and any other doubles it again.
    """
    widest = MAX_SPREAD
    for lower, upper in zip(full[::2], full[1::2], strict=False):
        as_expected = lower.share >= wanted > upper.share
        widest = max(widest / 2, MIN_SPREAD) if as_expected else min(widest * 2, MAX_SPREAD)
    return min(max(half_width / 2, MIN_SPREAD), widest)


def _invalid_at_the_end(probes: Sequence[Probe]) -> int:
    count = 0
    for probe in reversed(probes):
        if probe.valid:
            break
        count += 1
    return count


__all__ = [
    "Batch",
    "Bracket",
    "Done",
    "Ending",
    "Fit",
    "Goal",
    "Probe",
    "Run",
    "Try",
    "bracket",
    "capacity",
    "decide",
    "fitted",
]
