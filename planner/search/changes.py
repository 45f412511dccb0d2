"""What would change the answer: the cheapest fleet again, in closed form, with one condition moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.queueing import Metric
from planner.search.answers import Change
from planner.search.closed import Found, search
from planner.search.fleets import Fleet
from planner.search.traffic import Promise, Traffic

STEP = 0.1  # of each condition
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")


def changes(found: Found) -> Iterator[Change]:
    """Laxer limits, one metric at a time, and a rate that grows or falls."""
    cheapest = _cheapest(found)
    if cheapest is None:
        return
    for metric in METRICS:
        if any(one.promise.tightest_s(metric) is not None for one in found.traffic.classes):
            laxer = with_limits(found.traffic, {metric: 1 + STEP})
            yield _change(f"{metric.upper()} limits {STEP:+.0%}", cheapest, search(found.prepared, laxer))
    for factor in (1 - STEP, 1 + STEP, 2.0):
        what = f"rate {factor - 1:+.0%}" if factor != 2.0 else "rate doubled"
        yield _change(what, cheapest, search(found.prepared, found.traffic.scaled(factor)))


def with_limits(traffic: Traffic, factors: dict[Metric, float]) -> Traffic:
    """The traffic with every limit of the named metrics times its factor."""
    classes = tuple(replace(one, promise=_scaled(one.promise, factors)) for one in traffic.classes)
    return replace(traffic, classes=classes)


def _scaled(promise: Promise, factors: dict[Metric, float]) -> Promise:
    return replace(
        promise,
        limits={metric: limit_s * factors.get(metric, 1.0) for metric, limit_s in promise.limits.items()},
        goals=tuple(replace(goal, limit_s=goal.limit_s * factors.get(goal.metric, 1.0)) for goal in promise.goals),
        means={metric: limit_s * factors.get(metric, 1.0) for metric, limit_s in promise.means.items()},
    )


def _cheapest(found: Found) -> Fleet | None:
    most = found.prepared.question.total_gpus
    return next((fleet for fleet in found.fleets if most is None or fleet.gpus <= most), None)


def _change(what: str, before: Fleet, found: Found) -> Change:
    after = _cheapest(found)
    if after is None:
        return Change(what=what, usd_per_hour_delta=None, gpus_delta=None)
    return Change(
        what=what, usd_per_hour_delta=after.usd_per_hour - before.usd_per_hour, gpus_delta=after.gpus - before.gpus
    )
