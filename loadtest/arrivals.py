"""When requests are due. Pure: the same law and seed give the same list, on every machine.

Every law is a renewal process of mean one, run on a clock that ticks at the wanted rate: `Spread` says how uneven the
gaps are, `RateProfile` how the rate moves. So a bursty ramp is as easy as a constant Poisson stream.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from loadtest.types import LoadTestError

Seconds = NDArray[np.float64]

# Gaps are drawn in pieces of this many, whatever the length of the run: a longer run begins like a shorter one.
DRAWN_AT_ONCE = 4096
# What Weibull shapes can express with finite moments worth having.
MIN_WEIBULL_CV, MAX_WEIBULL_CV = 0.01, 50.0


class Family(StrEnum):
    """The law of gaps."""

    CONSTANT = "constant"
    POISSON = "poisson"
    GAMMA = "gamma"
    WEIBULL = "weibull"


@dataclass(frozen=True, slots=True)
class Spread:
    """How uneven gaps are: `cv` is their standard deviation over their mean, and of use to gamma and Weibull only."""

    family: Family = Family.POISSON
    cv: float = 1.0

    @classmethod
    def of_burstiness(cls, burstiness: float) -> Spread:
        """As `vllm bench serve` has it: the gamma shape. 1 is Poisson, less is burstier, infinity is constant.

        Raises:
            LoadTestError: if it is not positive.
        """
        if not burstiness > 0:
            raise LoadTestError(f"burstiness is {burstiness}: it must be above 0")
        if math.isinf(burstiness):
            return cls(Family.CONSTANT)
        return cls() if burstiness == 1 else cls(Family.GAMMA, 1 / math.sqrt(burstiness))


@dataclass(frozen=True, slots=True)
class RateProfile:
    """Requests per second over time: straight lines between knots (seconds, rate).

    Two knots at one instant are a step. The last rate holds on forever. An infinite rate, alone, means all at once.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.knots or self.knots[0][0] != 0:
            raise LoadTestError("a rate profile begins at 0 s")
        times = [at_s for at_s, _ in self.knots]
        if any(later < sooner for sooner, later in itertools.pairwise(times)):
            raise LoadTestError("the times of a rate profile must not go back")
        finite = all(math.isfinite(rate) and rate >= 0 for _, rate in self.knots)
        if not finite and not self.at_once:
            raise LoadTestError("the rates of a profile must be 0 or more, and finite")

    @property
    def at_once(self) -> bool:
        return len(self.knots) == 1 and math.isinf(self.knots[0][1]) and self.knots[0][1] > 0


def constant_rate(rate_rps: float) -> RateProfile:
    """Infinity is allowed: all at once."""
    if not rate_rps > 0:
        raise LoadTestError(f"the request rate is {rate_rps}: it must be above 0")
    return RateProfile(((0.0, rate_rps),))


def ramp(from_rps: float, to_rps: float, over_s: float) -> RateProfile:
    """A straight ramp that then holds."""
    return RateProfile(((0.0, from_rps), (over_s, to_rps)))


def steps(rates_rps: Sequence[float], each_s: float) -> RateProfile:
    """One rate after the other, `each_s` long; the last holds."""
    knots: list[tuple[float, float]] = []
    for number, rate_rps in enumerate(rates_rps):
        if knots:
            knots.append((number * each_s, knots[-1][1]))
        knots.append((number * each_s, rate_rps))
    return RateProfile(tuple(knots))


def on_off(
    on_rps: float, off_rps: float, on_s: float, off_s: float, *, duration_s: float, rng: np.random.Generator
) -> RateProfile:
    """A Markov-modulated rate: it is on, then off, for exponential times of these means. Begins on."""
    knots = [(0.0, on_rps)]
    at_s, on = 0.0, True
    while at_s < duration_s:
        at_s += rng.exponential(on_s if on else off_s)
        on = not on
        knots += [(at_s, knots[-1][1]), (at_s, on_rps if on else off_rps)]
    return RateProfile(tuple(knots))


def rate_file(lines: Iterable[str]) -> RateProfile:
    """Lines of `seconds,rate`; a rate holds until the next line. Blank lines and lines that begin with # are skipped.

    Raises:
        LoadTestError: naming the line.
    """
    knots: list[tuple[float, float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            at_s, rate_rps = (float(part) for part in line.split(","))
        except ValueError as error:
            raise LoadTestError(f"line {number} of the rate file is not `seconds,rate`: {line.strip()!r}") from error
        if knots:
            knots.append((at_s, knots[-1][1]))
        knots.append((at_s, rate_rps))
    return RateProfile(tuple(knots))


def due_times_s(
    profile: RateProfile,
    spread: Spread,
    rng: np.random.Generator,
    *,
    count: int | None = None,
    duration_s: float | None = None,
) -> Seconds:
    """Due times from 0 on, ascending: `count` of them, or those before `duration_s`, whichever ends first.

    Raises:
        LoadTestError: if nothing bounds the list, or the rate falls to 0 before `count` is reached.
    """
    if count is None and duration_s is None:
        raise LoadTestError("arrivals need a number of requests or a duration")
    if profile.at_once:
        if count is None:
            raise LoadTestError("an infinite request rate needs a number of requests")
        return np.zeros(count)
    due = np.fromiter(_arrivals(profile, _ticks(spread, rng), count, duration_s), dtype=np.float64)
    if count is not None and duration_s is None and len(due) < count:
        raise LoadTestError(f"the rate falls to 0 after {len(due)} of {count} requests: give a duration")
    return due


def think_times_s(mean_s: float, cv: float, count: int, rng: np.random.Generator) -> Seconds:
    """Log-normal pauses, as people and tools make them; all equal for a `cv` of 0."""
    if mean_s <= 0 or cv <= 0:
        return np.full(count, max(mean_s, 0.0))
    variance = math.log1p(cv * cv)
    return rng.lognormal(math.log(mean_s) - variance / 2, math.sqrt(variance), count)


def thin(keys: Sequence[object], keep: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which entries stay when a share `keep` of the distinct keys (sessions) does: a session stays whole or goes whole.

    Thinning keeps the shape of the load; squeezing time would change how long conversations last.
    """
    if not 0 < keep <= 1:
        raise LoadTestError(f"a trace can be thinned to a share in (0, 1], not to {keep}")
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    stays = rng.random(len(order)) < keep
    return stays[[order[key] for key in keys]] if keys else np.empty(0, dtype=np.bool_)


def weibull_shape(cv: float) -> float:
    """The shape that has this coefficient of variation."""
    if not MIN_WEIBULL_CV <= cv <= MAX_WEIBULL_CV:
        raise LoadTestError(f"a Weibull law with a CV of {cv} cannot be had: {MIN_WEIBULL_CV} to {MAX_WEIBULL_CV}")

    low, high = math.log(0.05), math.log(500.0)
    for _ in range(100):  # halving: the CV falls as the shape grows
        middle = (low + high) / 2
        k = math.exp(middle)
        excess = math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k) - math.log1p(cv * cv)
        low, high = (middle, high) if excess > 0 else (low, middle)
    return math.exp(low)


def _ticks(spread: Spread, rng: np.random.Generator) -> Iterator[float]:
    """The instants of a renewal process of rate one; a constant one begins at 0."""
    at = 0.0
    if spread.family is Family.CONSTANT:
        while True:
            yield at
            at += 1.0
    while True:
        for gap in _gaps(spread, rng):
            at += gap
            yield at


def _gaps(spread: Spread, rng: np.random.Generator) -> list[float]:
    if spread.family is Family.POISSON:
        gaps = rng.exponential(1.0, DRAWN_AT_ONCE)
    elif spread.family is Family.GAMMA:
        shape = 1 / (spread.cv * spread.cv)
        gaps = rng.gamma(shape, 1 / shape, DRAWN_AT_ONCE)
    else:
        shape = weibull_shape(spread.cv)
        gaps = rng.weibull(shape, DRAWN_AT_ONCE) / math.gamma(1 + 1 / shape)
    return gaps.tolist()


def _arrivals(
    profile: RateProfile, ticks: Iterator[float], count: int | None, duration_s: float | None
) -> Iterator[float]:
    """Where the integral of the rate reaches each tick, segment by segment."""
    integral, tick, given = 0.0, next(ticks), 0
    knots = [*profile.knots, (math.inf, profile.knots[-1][1])]
    for (begin_s, rate), (end_s, end_rate) in itertools.pairwise(knots):
        length_s = end_s - begin_s
        slope = (end_rate - rate) / length_s if 0 < length_s < math.inf else 0.0
        area = (rate + end_rate) / 2 * length_s if length_s < math.inf else (math.inf if rate > 0 else 0.0)
        while tick - integral < area:
            at_s = begin_s + _time_to(tick - integral, rate, slope)
            if given == count or (duration_s is not None and at_s >= duration_s):
                return
            yield at_s
            given += 1
            tick = next(ticks)
        integral += area


def _time_to(area: float, rate: float, slope: float) -> float:
    """Solve rate·t + slope·t²/2 = area for t, without losing digits when the slope is small."""
    if not area:
        return 0.0
    return 2 * area / (rate + math.sqrt(max(0.0, rate * rate + 2 * slope * area)))
