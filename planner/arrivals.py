"""When requests are due, as the workload document says it: arrival processes, each at a mean rate.

Every process is a unit-rate point process (`gaps`) whose clock is bent (`rates`), so the same seed gives the same
pattern at any rate.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from planner.documents import Document, Row, refuse
from planner.gaps import MAX_CV, MIN_CV, Family, Floats, Spread
from planner.rates import on_off, spells
from planner.types import PlannerError

POISSON = Spread()

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
        return Spread(Family.CONSTANT).points(uniforms) / self.rate_rps


class Poisson(_Steady):
    """Independent users: exponential gaps."""

    kind: Literal["poisson"]

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        return POISSON.points(uniforms) / self.rate_rps


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

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        cv = self.cv if self.cv is not None else float(self.burstiness or 1) ** -0.5
        return Spread(Family.GAMMA, min(max(cv, MIN_CV), MAX_CV)).points(uniforms) / self.rate_rps


class Weibull(_Steady):
    """Weibull gaps, as ServeGen fits to some of its clients."""

    kind: Literal["weibull"]
    cv: Cv

    def times_s(self, uniforms: Floats, turns: Floats) -> Floats:
        return Spread(Family.WEIBULL, self.cv).points(uniforms) / self.rate_rps


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
        profile = on_off(self.on_rps, self.off_rps, self.on_s, self.off_s, turns=turns)
        return profile.times_s(POISSON.points(uniforms))


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
        stretches = ((step.for_s for step in self.steps), (step.rate_rps for step in self.steps))
        return spells(*stretches, repeats=True).times_s(POISSON.points(uniforms))


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
