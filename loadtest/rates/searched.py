"""What a search found, in a sentence and as a document. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.rates.capacity import Fit
from loadtest.rates.decide import Ending, Goal, Probe, bounds


@dataclass(frozen=True, slots=True)
class Known:
    """The capacity and its bounds, with what these are: a confidence interval, or runs that met and missed the SLO."""

    rate_rps: float
    low_rps: float
    high_rps: float
    bounds: str


@dataclass(frozen=True, slots=True)
class Searched:
    """How a search ended. `fit` is None where no capacity was bracketed."""

    goal: Goal
    ending: Ending
    fit: Fit | None
    probes: tuple[Probe, ...]
    took_s: float
    why: str = ""
    """Why it could not go on, where it could not."""

    @property
    def known(self) -> Known | None:
        """None where no capacity was bracketed. An interval that is still open says less than the runs themselves."""
        if self.fit is None:
            return None
        low_rps, high_rps = self.fit.low_rps, self.fit.high_rps
        if low_rps and math.isfinite(high_rps):
            told = f"{self.goal.confidence:.0%}: {low_rps:.4g} to {high_rps:.4g}"
            return Known(self.fit.rate_rps, low_rps, high_rps, told)
        runs = bounds(self.probes, self.goal)
        told = f"met at {runs.low_rps:.4g}, missed at {runs.high_rps:.4g}; too few runs to say how sure"
        return Known(self.fit.rate_rps, runs.low_rps, runs.high_rps, told)


def statement(searched: Searched) -> str:
    """The result in a sentence."""
    runs, minutes = len(searched.probes), searched.took_s / 60
    tail = f"{runs} runs, {minutes:.1f} min"
    found, goal = searched.known, searched.goal
    ending = f"{searched.ending.value}{f' ({searched.why})' if searched.why else ''}"
    if searched.ending is Ending.NONE_MEETS:
        return f"capacity below {goal.min_rps:g} requests/s: {searched.ending.value} ({tail})"
    if searched.ending is Ending.ALL_MEET:
        return f"capacity at least {goal.max_rps:g} requests/s: {searched.ending.value} ({tail})"
    if found is None:
        return f"capacity not found: {ending} ({tail})"
    why = "" if searched.ending is Ending.FOUND else f"; not as sure as wanted: {ending}"
    return f"capacity {found.rate_rps:.4g} requests/s ({found.bounds}; {tail}{why})"


def as_tree(searched: Searched, files: Sequence[str] = ()) -> dict[str, object]:
    """The search as a document, `ferry-search/1`. `files` are the reports of its runs, in order."""
    found, goal = searched.fit, searched.goal
    runs = bounds(searched.probes, goal)
    return {
        "format": "ferry-search/1",
        "ending": searched.ending.name.lower(),
        "statement": statement(searched),
        "why": searched.why,
        "wanted": goal.wanted,
        "confidence": goal.confidence,
        "capacity_rps": found and found.rate_rps,
        "low_rps": found and found.low_rps,
        "high_rps": found and (found.high_rps if math.isfinite(found.high_rps) else None),
        "met_rps": runs.low_rps or None,
        "missed_rps": runs.high_rps if math.isfinite(runs.high_rps) else None,
        "took_s": searched.took_s,
        "runs": [
            {
                "rate_rps": probe.run.rate_rps,
                "brief": probe.brief,
                "valid": probe.valid,
                "due": sum(batch.due for batch in probe.run.batches),
                "met": sum(batch.met for batch in probe.run.batches),
                "report": files[place] if place < len(files) else None,
            }
            for place, probe in enumerate(searched.probes)
        ],
    }
