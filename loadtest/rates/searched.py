"""What a search found, in a sentence and as a document. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.rates.capacity import Fit
from loadtest.rates.decide import Ending, Goal, Probe, fitted


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
        low_rps, high_rps = met_and_missed(self.probes, self.goal.wanted)
        told = f"met up to {low_rps:.4g}, missed from {high_rps:.4g} on; too few runs to say how sure"
        return Known(self.fit.rate_rps, low_rps, high_rps, told)


def met_and_missed(probes: Sequence[Probe], wanted: float) -> tuple[float, float]:
    """The rate up to which all fitted runs met the SLO, and that from which on all missed it; between, some did.

    Where those are all on one side, a brief run bounds the other. 0 and infinity where none does.
    """
    every, runs = [probe.run for probe in probes if probe.valid], fitted(probes)
    met, missed = ([run.rate_rps for run in runs if (run.share >= wanted) is is_met] for is_met in (True, False))
    lowest_missed, highest_met = min(missed, default=math.inf), max(met, default=0.0)
    met = [rate for rate in met if rate < lowest_missed] or [run.rate_rps for run in every if run.share >= wanted]
    missed = [rate for rate in missed if rate > highest_met] or [run.rate_rps for run in every if run.share < wanted]
    return (
        max((rate for rate in met if rate < lowest_missed), default=0.0),
        min((rate for rate in missed if rate > highest_met), default=math.inf),
    )


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
    met_rps, missed_rps = met_and_missed(searched.probes, goal.wanted)
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
        "met_rps": met_rps or None,
        "missed_rps": missed_rps if math.isfinite(missed_rps) else None,
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
