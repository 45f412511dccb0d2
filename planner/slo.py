"""The SLO document: what was promised, per class of request. Planner, gateway and load test read the same file.

The words, as the load test measures them:
- ttft: from the moment a request is due to its first generated token;
- tpot: (last token - first token) / (tokens - 1), so without TTFT;
- e2e: from the moment a request is due to its last token.

A latency is promised as a limit for each request (`ttft_ms: 500`), which a share `attainment` of all requests due
must meet (a failed, cut or shed request misses it), or as percentiles over all requests due
(`ttft_ms: {p50: 200, p99: 800}`), or as both (`{limit: 1000, p50: 200}`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_serializer, model_validator

from planner.documents import Document, nearest, refuse, validated
from planner.types import PlannerError

Metric = Literal["ttft", "tpot", "e2e"]
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")

PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)")
USUAL_STATISTICS = ("limit", "mean", "p50", "p90", "p95", "p99", "p99.9")
DEFAULT_ATTAINMENT = 0.99


@dataclass(frozen=True)
class Target:
    """One promise: `percentile` (0 to 100, or None for the mean) of `metric` is at most `limit_s`, in seconds."""

    metric: Metric
    percentile: float | None
    limit_s: float


class Latency(Document):
    """What is promised of one metric, in milliseconds. In YAML a number, or a mapping of statistics."""

    limit: PositiveFloat | None = None
    mean: PositiveFloat | None = None
    # (percentile, milliseconds), rising.
    percentiles: Annotated[tuple[tuple[float, PositiveFloat], ...], Field(strict=False)] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return {"limit": data}
        if not data:
            refuse("", data, "no promise stands here", "give a number of milliseconds, or p50, p90, p99")
        rows = []
        for key, value in data.items():
            found = PERCENTILE.fullmatch(str(key))
            if found and float(found[1]) > 0:
                rows.append((float(found[1]), _milliseconds(str(key), value)))
            elif key not in ("limit", "mean"):
                refuse(str(key), value, "is not a statistic", nearest(str(key), USUAL_STATISTICS))
        given = {key: value for key, value in data.items() if key in ("limit", "mean")}
        return given | {"percentiles": tuple(sorted(rows))}

    @model_validator(mode="after")
    def _percentiles_rise(self) -> Self:
        for (low, low_ms), (high, high_ms) in pairwise(self.percentiles):
            if low_ms > high_ms:
                refuse(
                    f"p{low:g}",
                    low_ms,
                    f"it is above p{high:g} = {high_ms:g} ms, which already promises less",
                    f"lower p{low:g} to at most {high_ms:g}, or raise p{high:g}",
                )
        return self

    @model_serializer(mode="plain")
    def _as_in_yaml(self) -> object:
        named = _statistics(self)
        return named["limit"] if set(named) == {"limit"} else named

    @property
    def request_limit_ms(self) -> float | None:
        """What one request is held to: the limit, else the highest percentile's value; None for a mean alone."""
        if self.limit is not None:
            return self.limit
        return self.percentiles[-1][1] if self.percentiles else None


class SloClass(Document):
    """The promise to one class of requests. `priority` as in vLLM: lower is served sooner."""

    ttft_ms: Latency | None = None
    tpot_ms: Latency | None = None
    e2e_ms: Latency | None = None
    attainment: Annotated[float | None, Field(gt=0, lt=1)] = None
    rate_rps: PositiveFloat | None = None
    concurrency: Annotated[int | None, Field(gt=0)] = None
    priority: int = 0

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if not self.latencies:
            refuse("", None, "no latency is promised", "give ttft_ms, tpot_ms or e2e_ms")
        if self.rate_rps is not None and self.concurrency is not None:
            refuse(
                "concurrency",
                self.concurrency,
                f"rate_rps = {self.rate_rps:g} is given too, and each follows from the other",
                "keep rate_rps for traffic from outside, or concurrency for a closed loop of callers",
            )
        self._e2e_leaves_room()
        self._attainment_agrees()
        return self

    def _e2e_leaves_room(self) -> None:
        """The whole answer cannot be due before its first token."""
        if self.e2e_ms is None:
            return
        whole = _statistics(self.e2e_ms)
        for metric in ("ttft", "tpot"):
            part = self.latencies.get(metric)
            for name, part_ms in _statistics(part).items() if part else ():
                if name in whole and whole[name] <= part_ms:
                    refuse(
                        "e2e_ms",
                        whole[name],
                        f"its {name} is not above {metric}_ms = {part_ms:g} ms, which is a part of it",
                        f"raise e2e_ms above {part_ms:g} or lower {metric}_ms",
                    )

    def _attainment_agrees(self) -> None:
        for metric, latency in self.latencies.items():
            if self.attainment is None or latency.limit is not None or not latency.percentiles:
                continue
            highest = latency.percentiles[-1][0]
            if self.attainment * 100 > highest + 1e-9:
                refuse(
                    "attainment",
                    self.attainment,
                    f"{metric}_ms promises only p{highest:g}",
                    f"lower attainment to {highest / 100:g}, or give {metric}_ms a limit for each request",
                )

    @property
    def latencies(self) -> Mapping[Metric, Latency]:
        """The metrics that carry a promise."""
        given = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {metric: latency for metric in METRICS if (latency := given[metric]) is not None}

    @property
    def request_limits_s(self) -> Mapping[Metric, float]:
        """The limits, in seconds, that a request must meet, all of them, to count as good."""
        limits = {metric: latency.request_limit_ms for metric, latency in self.latencies.items()}
        return {metric: limit_ms / 1e3 for metric, limit_ms in limits.items() if limit_ms is not None}

    @property
    def required_attainment(self) -> float:
        """The share of all requests due that must be good: as given, else what the percentiles say, else 0.99."""
        if self.attainment is not None:
            return self.attainment
        if any(latency.limit is not None for latency in self.latencies.values()):
            return DEFAULT_ATTAINMENT
        highest = [latency.percentiles[-1][0] for latency in self.latencies.values() if latency.percentiles]
        return min(highest) / 100 if highest else DEFAULT_ATTAINMENT

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every promise as a percentile; a limit counts as the percentile of the required attainment."""
        return tuple(self._targets())

    def _targets(self) -> Iterator[Target]:
        for metric, latency in self.latencies.items():
            if latency.mean is not None:
                yield Target(metric, None, latency.mean / 1e3)
            for percentile, limit_ms in latency.percentiles:
                yield Target(metric, percentile, limit_ms / 1e3)
            if latency.limit is not None:
                yield Target(metric, self.required_attainment * 100, latency.limit / 1e3)


class Slo(Document):
    """An SLO file: the classes by name."""

    classes: Annotated[dict[str, SloClass], Field(min_length=1)]

    def of(self, name: str) -> SloClass:
        """The class called `name`. Raises PlannerError with the nearest names."""
        if name not in self.classes:
            raise PlannerError("slo.yaml", f"classes.{name}", None, "no such class", nearest(name, self.classes))
        return self.classes[name]


def slo_from(data: object, *, file: str = "slo.yaml") -> Slo:
    """The SLO in parsed YAML. Raises PlannerError for unknown keys and for negative or contradictory promises."""
    return validated(Slo, data, file=file)


def _milliseconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        refuse(key, value, "it should be a number of milliseconds above 0", f"give {key} in milliseconds")
    return float(value)


def _statistics(latency: Latency) -> dict[str, float]:
    """Each promise of a latency by its name, in milliseconds."""
    named = {"limit": latency.limit, "mean": latency.mean}
    named |= {f"p{percentile:g}": limit_ms for percentile, limit_ms in latency.percentiles}
    return {name: value for name, value in named.items() if value is not None}
