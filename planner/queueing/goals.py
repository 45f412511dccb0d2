"""What a request is promised: a metric, its limit, and the share of requests that must keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.types import PlannerError

Metric = Literal["ttft", "tpot", "e2e"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """At least `share` of the requests within `limit_s`."""

    metric: Metric
    share: float
    limit_s: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PlannerError("goal", "share", self.share, "must lie between 0 and 1", "write P99 as 0.99")
        if not self.limit_s > 0:
            raise PlannerError("goal", "limit_s", self.limit_s, "must be above zero", "give the limit in seconds")
