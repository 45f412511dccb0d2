"""What the search answers: plans to choose from with their reasons, or why there is none and what comes nearest."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from planner.documents import Document, Row
from planner.plan import Plan, Share

Constraint = Literal["memory", "ttft", "tpot", "e2e", "throughput", "gpus", "price"]


class Change(Document):
    """What would change an answer: one condition moved, and what the cheapest plan would then cost.

    Deltas are against the cheapest plan as the closed forms see it; None where no plan is left.
    """

    what: str
    usd_per_hour_delta: float | None
    gpus_delta: int | None

    @property
    def text(self) -> str:
        if self.usd_per_hour_delta is None or self.gpus_delta is None:
            return f"{self.what}: no plan is left"
        if not self.gpus_delta and abs(self.usd_per_hour_delta) < 0.005:
            return f"{self.what}: changes nothing"
        return f"{self.what}: {self.usd_per_hour_delta:+.2f} USD/h, {self.gpus_delta:+d} GPUs"


class Candidate(Document):
    """One plan to choose from. `name` tells it apart in a list, such as `h100_sxm TP2 fp8, mixed`."""

    name: str
    plan: Plan

    @property
    def usd_per_hour(self) -> float:
        """What it is expected to cost."""
        return self.plan.cost.expected_usd_per_hour

    @property
    def gpus(self) -> int:
        return self.plan.gpus

    @property
    def probability(self) -> float:
        """P(SLO met)."""
        return self.plan.prediction.probability


class Point(Document):
    """One configuration at its best replica count, in closed form: a dot in the plot of costs."""

    name: str
    device: str
    disaggregated: bool
    usd_per_hour: NonNegativeFloat
    gpus: NonNegativeInt
    rate_rps: PositiveFloat  # at which it would still hold the SLO


class Skipped(Document):
    """A device, or a way to use it, that the search left out, and why."""

    what: str
    reason: str


class Answer(Document):
    """At least one plan holds the SLO. All candidates were simulated.

    `safest` is the cheapest whose P(SLO met) reaches `safe_probability`, or the surest there is. No plan of `pareto`
    beats another in cost, GPUs and probability at once; cheapest first. `points` are the best of the closed forms.
    """

    cheapest: Candidate
    fewest_gpus: Candidate
    safest: Candidate
    safe_probability: Share
    pareto: Row[Candidate]
    points: Row[Point] = ()
    changes: Row[Change] = ()
    considered: NonNegativeInt
    fitting: NonNegativeInt  # of them, those whose weights and longest request fit into memory
    verified: NonNegativeInt  # plans simulated
    skipped: Row[Skipped] = ()
    warnings: Row[str] = ()


class NearestSlo(Document):
    """A promise that could be kept: the smallest limit at the asked rate with the devices allowed."""

    class_name: str
    metric: Literal["ttft", "tpot", "e2e"]
    statistic: str  # such as `p99` or `limit`
    asked_ms: PositiveFloat
    feasible_ms: PositiveFloat


class Nearest(Document):
    """One way out, alone sufficient: what to change, in words and in figures."""

    kind: Literal["slo", "gpus", "price", "rate", "device"]
    text: str
    slo: Row[NearestSlo] = ()
    gpus: NonNegativeInt | None = None
    usd_per_hour: NonNegativeFloat | None = None
    rate_rps: NonNegativeFloat | None = None


class Infeasible(Document):
    """No plan holds the SLO within the limits. Not an error: the question was sound."""

    constraint: Constraint
    problem: str
    nearest: Row[Nearest] = ()
    considered: NonNegativeInt
    fitting: NonNegativeInt
    skipped: Row[Skipped] = ()
    warnings: Row[str] = ()
