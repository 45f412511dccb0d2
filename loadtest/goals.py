"""The planner's SLO document as the load test's limits: what was promised is what is judged."""

from __future__ import annotations

from pathlib import Path

from loadtest.types import LoadTestError, Promise, Slo
from planner import PlannerError, SloClass, read_slo


def read_goals(path: Path) -> dict[str, Slo]:
    """The classes of an SLO file by name. Raises LoadTestError."""
    try:
        document = read_slo(path)
    except PlannerError as error:
        raise LoadTestError(f"{error}: {error.remedy}") from error
    return {name: goal_of(promised) for name, promised in document.classes.items()}


def check_seen(slo: Slo, promised_by: str) -> None:
    """Of a load that asks for whole answers: raises LoadTestError if its goal is one of streams."""
    if slo.needs_streams:
        raise LoadTestError(
            f"{promised_by} limits TTFT, TPOT or gaps, which whole answers do not show: leave --no-stream out, or "
            "limit e2e alone"
        )


def goal_of(promised: SloClass) -> Slo:
    """Limits for each request, the share that must meet them, and what is promised of all requests together."""
    limits_ms = {metric: latency.request_limit_ms for metric, latency in promised.latencies.items()}
    promises: list[Promise] = []
    for metric, latency in promised.latencies.items():
        if latency.mean is not None:
            promises.append(Promise(metric, None, latency.mean))
        promises += [Promise(metric, percentile, limit_ms) for percentile, limit_ms in latency.percentiles]
    return Slo(
        ttft_ms=limits_ms.get("ttft"),
        tpot_ms=limits_ms.get("tpot"),
        e2e_ms=limits_ms.get("e2e"),
        attainment=promised.required_attainment,
        promises=tuple(promises),
    )
