"""How a request rate moves over time, and when a process whose clock runs at that rate makes its arrivals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.gaps import Floats
from planner.types import PlannerError

# Spells of an on/off process before its pattern repeats; fixed, so that a longer list begins with the shorter one.
SPELLS = 4096


@dataclass(frozen=True, slots=True)
class RateProfile:
    """Requests per second over time: straight lines between knots (seconds, rate).

    Two knots at one instant are a step. The last rate holds on forever, or the whole begins again if it `repeats`.
    An infinite rate, alone, means all at once.
    """

    knots: tuple[tuple[float, float], ...]
    repeats: bool = False

    def __post_init__(self) -> None:
        if not self.knots or self.knots[0][0] != 0:
            raise _odd("knots", self.knots[:1], "a rate profile begins at 0 s")
        times = [at_s for at_s, _ in self.knots]
        if any(later < sooner for sooner, later in itertools.pairwise(times)):
            raise _odd("knots", times, "the times of a rate profile must not go back")
        for _, rate_rps in self.knots:
            if not (math.isfinite(rate_rps) and rate_rps >= 0) and not self.at_once:
                raise _odd("rate", rate_rps, "the rates of a profile must be 0 or more, and finite")
        if self.repeats and not self._made()[-1] > 0:
            raise _odd("knots", times, "a profile that repeats needs a rate above 0 somewhere")

    @property
    def at_once(self) -> bool:
        return len(self.knots) == 1 and math.isinf(self.knots[0][1]) and self.knots[0][1] > 0

    def times_s(self, counts: Floats) -> Floats:
        """When the profile has made so many arrivals; infinite where its rate stays at 0 before. `counts` rise."""
        at_s, rates = (np.array(column) for column in zip(*self.knots, strict=True))
        made = self._made()
        rounds, within = np.divmod(counts, made[-1]) if self.repeats else (np.zeros(len(counts)), counts)
        # Silent spells make steps in time; of equal counts the last is the end of the silence, where the next one is.
        segment = np.searchsorted(made, within, side="right") - 1
        if self.repeats:
            segment = np.minimum(segment, len(rates) - 2)
        slopes = np.append(np.diff(rates) / np.where(np.diff(at_s) > 0, np.diff(at_s), np.inf), 0.0)
        times = rounds * at_s[-1] + at_s[segment] + _time_to(within - made[segment], rates[segment], slopes[segment])
        never = (segment == len(rates) - 1) & (rates[-1] == 0)
        return np.where(never, np.inf, times)

    def _made(self) -> Floats:
        """Arrivals up to each knot."""
        at_s, rates = (np.array(column) for column in zip(*self.knots, strict=True))
        return np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(at_s))])


def constant_rate(rate_rps: float) -> RateProfile:
    """Infinity is allowed: all at once."""
    if not rate_rps > 0:
        raise _odd("rate", rate_rps, "the request rate must be above 0")
    return RateProfile(((0.0, rate_rps),))


def ramp(from_rps: float, to_rps: float, over_s: float) -> RateProfile:
    """A straight ramp that then holds."""
    return RateProfile(((0.0, from_rps), (over_s, to_rps)))


def steps(rates_rps: Sequence[float], each_s: float) -> RateProfile:
    """One rate after the other, `each_s` long; the last holds."""
    return spells([each_s] * len(rates_rps), rates_rps)


def spells(for_s: Iterable[float], rates_rps: Iterable[float], *, repeats: bool = False) -> RateProfile:
    """Each rate for its time; then the last holds, or all begins again."""
    knots: list[tuple[float, float]] = []
    at_s = 0.0
    for spell_s, rate_rps in zip(for_s, rates_rps, strict=True):
        knots += [(at_s, rate_rps), (at_s + spell_s, rate_rps)]
        at_s += spell_s
    return RateProfile(tuple(knots), repeats)


def on_off(on_rps: float, off_rps: float, on_s: float, off_s: float, *, turns: Floats) -> RateProfile:
    """A Markov-modulated rate: it is on, then off, for exponential times of these means. Begins on.

    `turns` are the uniform numbers that spell lengths come from, SPELLS of them; the pattern repeats if they run out.
    """
    lengths_s = -np.log1p(-turns[: 2 * (len(turns) // 2)])
    lengths_s[0::2] *= on_s
    lengths_s[1::2] *= off_s
    return spells(lengths_s.tolist(), [on_rps, off_rps] * (len(lengths_s) // 2), repeats=True)


def rate_file(lines: Iterable[str], *, file: str = "rate file") -> RateProfile:
    """Lines of `seconds,rate`; a rate holds until the next line. Blank lines and lines that begin with # are skipped.

    Raises:
        PlannerError: naming the line.
    """
    knots: list[tuple[float, float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            at_s, rate_rps = (float(part) for part in line.split(","))
        except ValueError as error:
            key = f"line {number}"
            raise PlannerError(file, key, line.strip(), "it is not `seconds,rate`", f"correct {key}") from error
        if knots:
            knots.append((at_s, knots[-1][1]))
        knots.append((at_s, rate_rps))
    return RateProfile(tuple(knots))


def _time_to(area: Floats, rate: Floats, slope: Floats) -> Floats:
    """Solve rate·t + slope·t²/2 = area for t, without losing digits when the slope is small."""
    speed = rate + np.sqrt(np.maximum(0.0, rate * rate + 2 * slope * area))
    return np.asarray(2 * area / np.where(speed > 0, speed, 1.0))


def _odd(key: str, value: object, problem: str) -> PlannerError:
    return PlannerError("arrivals", key, value, problem, f"correct {key}")
