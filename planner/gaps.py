"""How uneven the gaps between arrivals are: laws of mean one, from uniform numbers.

`cv` is the coefficient of variation of the gaps: 0 is a metronome, 1 is Poisson, more is bursty. The `burstiness` of
`vllm bench serve` is 1/cv^2 (so there *less* is burstier).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import scipy  # its parts load when they are named, and most arrivals need none
from numpy.typing import NDArray

from planner.types import PlannerError

Floats = NDArray[np.float64]

MIN_CV, MAX_CV = 0.001, 100.0

# The Weibull shape of a cv of about 400, beyond what we accept.
LEAST_WEIBULL_SHAPE = 0.1


class Family(StrEnum):
    """The law of gaps."""

    CONSTANT = "constant"
    POISSON = "poisson"
    GAMMA = "gamma"
    WEIBULL = "weibull"


@dataclass(frozen=True, slots=True)
class Spread:
    """A law of gaps; `cv` is of use to gamma and Weibull only, and between MIN_CV and MAX_CV."""

    family: Family = Family.POISSON
    cv: float = 1.0

    def __post_init__(self) -> None:
        if not MIN_CV <= self.cv <= MAX_CV:
            raise _odd("cv", self.cv, f"it must be {MIN_CV:g} to {MAX_CV:g}")

    @classmethod
    def of_burstiness(cls, burstiness: float) -> Spread:
        """The gamma shape, as `vllm bench serve` has it: 1 is Poisson, less is burstier, infinity is constant.

        Raises:
            PlannerError: if it is not positive.
        """
        if not burstiness > 0:
            raise _odd("burstiness", burstiness, "it must be above 0")
        if math.isinf(burstiness):
            return cls(Family.CONSTANT)
        return cls() if burstiness == 1 else cls(Family.GAMMA, burstiness**-0.5)

    def points(self, uniforms: Floats) -> Floats:
        """When a process of rate one ticks, one tick for each uniform number; a constant one begins at 0."""
        if self.family is Family.CONSTANT:
            return np.arange(len(uniforms), dtype=np.float64)
        return np.cumsum(self._gaps(uniforms))

    def _gaps(self, uniforms: Floats) -> Floats:
        if self.family is Family.GAMMA:
            shape = self.cv**-2
            return np.asarray(scipy.special.gammaincinv(shape, uniforms) / shape)
        exponential = -np.log1p(-uniforms)
        if self.family is Family.POISSON:
            return exponential
        shape = weibull_shape(self.cv)
        return np.asarray(exponential ** (1 / shape) / np.exp(scipy.special.gammaln(1 + 1 / shape)))


def weibull_shape(cv: float) -> float:
    """The k with this cv: cv^2 + 1 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2, which falls as k rises. Raises PlannerError."""
    if not MIN_CV <= cv <= MAX_CV:
        raise _odd("cv", cv, f"it must be {MIN_CV:g} to {MAX_CV:g}")
    wanted = np.log1p(cv**2)

    def excess(k: float) -> float:
        return float(scipy.special.gammaln(1 + 2 / k) - 2 * scipy.special.gammaln(1 + 1 / k) - wanted)

    return float(scipy.optimize.brentq(excess, LEAST_WEIBULL_SHAPE, 1e6))


def _odd(key: str, value: float, problem: str) -> PlannerError:
    return PlannerError("arrivals", key, value, problem, f"correct {key}")
