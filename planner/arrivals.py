"""When requests are due: arrival processes, each at a mean rate and with a burstiness.

`cv` is the coefficient of variation of the gaps between arrivals: 0 is a metronome, 1 is Poisson, more is bursty.
The `burstiness` of `vllm bench serve` is 1/cv^2 (so there *less* is burstier); write either.

Every process is a unit-rate point process whose clock is bent, so the same seed gives the same pattern at any rate.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from scipy.optimize import brentq
from scipy.special import gammaincinv, gammaln

from planner.documents import Document, Row, refuse
from planner.types import PlannerError

Floats = NDArray[np.float64]

# The Weibull shape of a cv of about 400, beyond what we accept.
LEAST_WEIBULL_SHAPE = 0.1

MIN_CV, MAX_CV = 0.001, 100.0
Cv = Annotated[float, Field(ge=MIN_CV, le=MAX_CV)]
# More is a slip of the pen, and sums of it would overflow.
MOST_RPS = 1e9
Rate = Annotated[float, Field(gt=0, le=MOST_RPS)]


class _Steady(Document):
    """One mean rate throughout."""

    rate_rps: Rate

    @property
    def mean_rate_rps(self) -> float:
        return self.rate_rps

    def at_rate(self, rate_rps: float) -> Self:
        return self.model_copy(update={"rate_rps": rate_rps})


class Constant(_Steady):
    """One request every 1/rate seconds, the first at once."""

    kind: Literal["constant"]

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        return np.arange(len(uniforms)) / self.rate_rps


class Poisson(_Steady):
    """Independent users: exponential gaps."""

    kind: Literal["poisson"]

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        return np.cumsum(-np.log1p(-uniforms)) / self.rate_rps


class Gamma(_Steady):
    """Gamma gaps, by `cv` or by `burstiness`, the shape as `vllm bench serve` names it."""

    kind: Literal["gamma"]
    cv: Cv | None = None
    burstiness: Annotated[float | None, Field(ge=MAX_CV**-2, le=MIN_CV**-2)] = None

    @model_validator(mode="after")
    def _one_spread(self) -> Self:
        if (self.cv is None) == (self.burstiness is None):
            refuse("cv", self.cv, "one of cv and burstiness is needed", "write cv: 2 (or burstiness: 0.25)")
        return self

    @property
    def shape(self) -> float:
        return self.burstiness if self.burstiness is not None else float(self.cv or 1) ** -2

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        return np.cumsum(gammaincinv(self.shape, uniforms) / self.shape) / self.rate_rps


class Weibull(_Steady):
    """Weibull gaps, as ServeGen fits to some of its clients."""

    kind: Literal["weibull"]
    cv: Cv

    @property
    def shape(self) -> float:
        """The k with this cv: cv^2 + 1 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2, which falls as k rises."""
        wanted = np.log1p(self.cv**2)

        def excess(k: float) -> float:
            return float(gammaln(1 + 2 / k) - 2 * gammaln(1 + 1 / k) - wanted)

        return float(brentq(excess, LEAST_WEIBULL_SHAPE, 1e6))

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        shape = self.shape
        gaps = (-np.log1p(-uniforms)) ** (1 / shape) / np.exp(gammaln(1 + 1 / shape))
        return np.cumsum(gaps) / self.rate_rps


class OnOff(Document):
    """Bursts: Poisson at `on_rps` for about `on_s`, then at `off_rps` for about `off_s`; both spells exponential."""

    kind: Literal["on_off"]
    on_rps: Rate
    off_rps: NonNegativeFloat = 0.0
    on_s: PositiveFloat
    off_s: PositiveFloat

    @model_validator(mode="after")
    def _on_is_busier(self) -> Self:
        if self.off_rps >= self.on_rps:
            refuse("off_rps", self.off_rps, f"it is not below on_rps = {self.on_rps:g}", "exchange the two")
        return self

    @property
    def mean_rate_rps(self) -> float:
        return (self.on_rps * self.on_s + self.off_rps * self.off_s) / (self.on_s + self.off_s)

    def at_rate(self, rate_rps: float) -> Self:
        factor = rate_rps / self.mean_rate_rps
        return self.model_copy(update={"on_rps": self.on_rps * factor, "off_rps": self.off_rps * factor})

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        """`turns` are the uniform numbers that spell lengths come from; the pattern repeats if they run out."""
        spells = -np.log1p(-turns[: 2 * (len(turns) // 2)])
        spells[0::2] *= self.on_s
        spells[1::2] *= self.off_s
        rates = np.where(np.arange(len(spells)) % 2 == 0, self.on_rps, self.off_rps)
        return _bend(np.cumsum(-np.log1p(-uniforms)), spells, rates)


class Step(Document):
    """A stretch of time at one rate."""

    for_s: PositiveFloat
    rate_rps: Annotated[float, Field(ge=0, le=MOST_RPS)]


class Steps(Document):
    """Poisson arrivals at rates that change at given times, over and over (a day, a ramp, a surge)."""

    kind: Literal["steps"]
    steps: Annotated[Row[Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _some_traffic(self) -> Self:
        if not any(step.rate_rps for step in self.steps):
            refuse("steps", None, "every rate is 0", "give one step a rate_rps above 0")
        return self

    @property
    def mean_rate_rps(self) -> float:
        requests = sum(step.for_s * step.rate_rps for step in self.steps)
        return requests / sum(step.for_s for step in self.steps)

    def at_rate(self, rate_rps: float) -> Self:
        factor = rate_rps / self.mean_rate_rps
        steps = tuple(Step(for_s=step.for_s, rate_rps=step.rate_rps * factor) for step in self.steps)
        return self.model_copy(update={"steps": steps})

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        spells = np.array([step.for_s for step in self.steps])
        rates = np.array([step.rate_rps for step in self.steps])
        return _bend(np.cumsum(-np.log1p(-uniforms)), spells, rates)


class ClosedLoop(Document):
    """`concurrency` callers, each of whom asks again `think_s` after its answer has ended."""

    kind: Literal["closed_loop"]
    concurrency: Annotated[int, Field(gt=0)]
    think_s: NonNegativeFloat = 0.0

    @property
    def mean_rate_rps(self) -> float:
        raise PlannerError(
            "workload.yaml",
            "arrivals.kind",
            self.kind,
            "its rate follows from the answers' speed",
            "choose an open process such as poisson where a rate is needed",
        )

    def at_rate(self, rate_rps: float) -> Self:
        raise PlannerError(
            "workload.yaml",
            "arrivals.kind",
            self.kind,
            f"it cannot be set to {rate_rps:g} requests/s",
            "choose an open process such as poisson, or change its concurrency",
        )

    def times_s(self, uniforms: Floats, turns: Floats) -> None:
        return None


Open = Constant | Poisson | Gamma | Weibull | OnOff | Steps
Arrivals = Annotated[Open | ClosedLoop, Field(discriminator="kind")]


def _bend(counts: Floats, spells_s: Floats, rates_rps: Floats) -> Floats:
    """Times at which a process that repeats these spells has made `counts` arrivals: its clock runs at the rate."""
    ends_s = np.concatenate([[0.0], np.cumsum(spells_s)])
    made = np.concatenate([[0.0], np.cumsum(spells_s * rates_rps)])
    rounds, within = np.divmod(counts, made[-1])
    # Silent spells make steps in time; of equal counts the last is the end of the silence, where the next arrival is.
    at = np.minimum(np.searchsorted(made, within, side="right") - 1, len(rates_rps) - 1)
    rates = np.where(rates_rps[at] > 0, rates_rps[at], np.inf)
    return np.asarray(rounds * ends_s[-1] + ends_s[at] + (within - made[at]) / rates)
