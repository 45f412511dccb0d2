"""What `replan` is told: a window of measured traffic, what each pool had, and how far it may go."""

from __future__ import annotations

from math import sqrt
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from planner.documents import Document, refuse
from planner.plan import Share
from planner.slo import Metric

# Of the interval that a share of some requests leaves open.
Z = 1.96
MANY = 100


class Attained(Document):
    """Of `requests` that ended in the window, `kept` stayed within their limit; a share of `required` must."""

    requests: NonNegativeInt
    kept: NonNegativeInt
    required: Share

    @model_validator(mode="after")
    def _kept_are_requests(self) -> Self:
        if self.kept > self.requests:
            refuse("kept", self.kept, f"only {self.requests} requests ended", "count each request once")
        return self

    @property
    def missed(self) -> bool:
        """Whether the promise is surely broken, chance left aside."""
        return self.requests > 0 and self._bound(+1.0) < self.required

    @property
    def met(self) -> bool:
        """Whether it is surely kept; of a promise to all requests, whether many came and none missed it."""
        none_missed = self.requests >= MANY and self.kept == self.requests
        return none_missed or (self.requests > 0 and self._bound(-1.0) >= self.required)

    def _bound(self, side: float) -> float:
        """End of the Wilson interval of the share. Wilson 1927, doi:10.1080/01621459.1927.10502953."""
        n, share = self.requests, self.kept / self.requests
        middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        return middle + side * half


class PoolObserved(Document):
    """At the window's end: replicas that serve, those among them that were told to leave, and those that start."""

    ready: NonNegativeInt
    leaving: NonNegativeInt = 0
    starting: NonNegativeInt = 0

    @model_validator(mode="after")
    def _leavers_serve(self) -> Self:
        if self.leaving > self.ready:
            refuse("leaving", self.leaving, f"only {self.ready} replicas serve", "count those that left no more")
        return self

    @property
    def staying(self) -> int:
        return self.ready - self.leaving + self.starting


class Observed(Document):
    """One window. Lengths in tokens; None where none was measured, and the plan's are taken.

    `calm` comes from the Replan before, empty at first: windows in a row in which a pool could have been smaller.
    """

    window_s: PositiveFloat
    rate_rps: NonNegativeFloat
    isl_mean: PositiveFloat | None = None
    osl_mean: PositiveFloat | None = None
    pools: dict[str, PoolObserved]
    attained: dict[Metric, Attained] = Field(default_factory=dict)
    calm: dict[str, NonNegativeInt] = Field(default_factory=dict)


class ReplanLimits(Document):
    """How far one call may go.

    A pool grows by a share of itself at most, and by at least one replica; it shrinks by one, after `patience_windows`
    in which it could have, and only where it then has `spare_share` of its capacity left, or more where the window
    holds so few requests that their number says little.
    """

    least_replicas: PositiveInt = 1
    most_gpus: PositiveInt | None = None
    most_usd_per_hour: PositiveFloat | None = None
    growth_share: Annotated[float, Field(gt=0)] = 0.5
    patience_windows: PositiveInt = 3
    spare_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
