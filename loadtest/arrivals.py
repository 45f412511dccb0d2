"""When requests of a load are due. Pure: the same law and seed give the same list, on every machine.

The laws are the planner's, so that what was planned for is what is sent: `Spread` says how uneven the gaps are,
`RateProfile` how the rate moves, and a bursty ramp is as easy as a constant Poisson stream. Here they meet the bounds
of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.types import LoadTestError
from planner import SPELLS, Family, RateProfile, Spread, constant_rate, on_off, ramp, rate_file

__all__ = [
    "SPELLS",
    "Family",
    "RateProfile",
    "Seconds",
    "Spread",
    "constant_rate",
    "due_times_s",
    "on_off",
    "ramp",
    "rate_file",
    "thin",
    "think_times_s",
]

Seconds = NDArray[np.float64]

# Numbers are drawn in pieces of this many, whatever the length of the run: a longer run begins like a shorter one.
DRAWN_AT_ONCE = 4096


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
    until_s = duration_s if duration_s is not None else math.inf
    uniforms = np.empty(0)
    while True:
        uniforms = np.concatenate([uniforms, rng.random(max(DRAWN_AT_ONCE, len(uniforms)))])
        due = profile.times_s(spread.points(uniforms))
        if len(due) >= (count if count is not None else math.inf) or due[-1] >= until_s or math.isinf(due[-1]):
            break
    due = due[np.isfinite(due) & (due < until_s)][:count]
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
