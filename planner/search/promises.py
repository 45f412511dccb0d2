"""Which configurations keep all promises, in closed form: mixed engines, or prefill and decode engines by themselves.

A class's limits must be kept together by a share of its requests; as it is not known which requests miss several, the
misses of single limits are added up, which errs on the safe side. Between pools the share that may miss is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from planner.queueing import EngineRules, Lengths, Metric, Routing, StepCosts, decode_engine, mixed_engine, prefill_pool
from planner.queueing.costs import Bools, Floats, Number
from planner.search.traffic import ClassTraffic, Promise, Traffic

# Of a promised E2E time, what a prefill pool may take where no TTFT is promised.
PREFILL_SHARE = 0.3
HALVINGS = 9
CULL_EACH = 2  # halvings


Index = npt.NDArray[np.intp]


class Estimate(Protocol):
    """What the closed forms answer."""

    @property
    def load(self) -> Floats: ...

    @property
    def fits(self) -> Bools: ...

    def exceeds(self, metric: Metric, limit_s: Number) -> Floats: ...


EstimateAt = Callable[[Number, Lengths | None], Estimate]
"""The estimate at a rate, as requests of certain lengths see it."""


def mixed_at(costs: StepCosts, rules: EngineRules, traffic: Traffic, scv: Number) -> EstimateAt:
    return lambda rate, seen: mixed_engine(costs, rules, traffic.lengths, rate_rps=rate, arrival_scv=scv, seen=seen)


def prefill_at(costs: StepCosts, rules: EngineRules, traffic: Traffic, scv: Number) -> EstimateAt:
    return lambda rate, seen: prefill_pool(
        costs, rules, traffic.lengths, engines=1.0, rate_rps=rate, arrival_scv=scv, routing=Routing.RANDOM, seen=seen
    )


def decode_at(costs: StepCosts, rules: EngineRules, traffic: Traffic, scv: Number, transfer_s: Number) -> EstimateAt:
    return lambda rate, seen: decode_engine(
        costs, rules, traffic.lengths, rate_rps=rate, arrival_scv=scv, transfer_s=transfer_s, seen=seen
    )


def of_prefill(promise: Promise) -> Promise:
    """The part of a promise that a prefill pool answers for."""
    return _part(promise, lambda metric, limit_s: limit_s if metric == "ttft" else None, allowance=True)


def of_decode(promise: Promise) -> Promise:
    """The part of a promise that a decode pool answers for: TPOT, and E2E less what prefill may take."""
    first_s = promise.tightest_s("ttft")

    def part(metric: Metric, limit_s: float) -> float | None:
        if metric == "ttft":
            return None
        if metric == "tpot":
            return limit_s
        return limit_s - first_s if first_s is not None and first_s < limit_s else limit_s * (1 - PREFILL_SHARE)

    return _part(promise, part, allowance=False)


def _part(promise: Promise, part: Callable[[Metric, float], float | None], *, allowance: bool) -> Promise:
    limits = _kept(promise.limits, part)
    shared = bool(limits) and len(promise.limits) > len(limits)
    goals = tuple(
        type(goal)(metric=goal.metric, share=goal.share, limit_s=limit_s)
        for goal in promise.goals
        if (limit_s := part(goal.metric, goal.limit_s)) is not None
    )
    means = _kept(promise.means, part)
    e2e_s = promise.tightest_s("e2e")
    if allowance and not (limits or goals or means) and e2e_s is not None:
        limits = {"ttft": e2e_s * PREFILL_SHARE}
        shared = True
    attainment = 1 - (1 - promise.attainment) / (2 if shared else 1)
    return Promise(limits=limits, attainment=attainment, goals=goals, means=means)


def _kept(values: Mapping[Metric, float], part: Callable[[Metric, float], float | None]) -> dict[Metric, float]:
    found = {metric: part(metric, limit_s) for metric, limit_s in values.items()}
    return {metric: limit_s for metric, limit_s in found.items() if limit_s is not None}


Promises = tuple[tuple[Lengths | None, Promise], ...]
"""What each class is promised; None for its lengths where it is the only one."""


def promises_of(traffic: Traffic, part: Callable[[Promise], Promise] | None = None) -> Promises:
    def lengths(one: ClassTraffic) -> Lengths | None:
        return one.lengths if len(traffic.classes) > 1 else None

    return tuple((lengths(one), part(one.promise) if part else one.promise) for one in traffic.classes)


def keeps(estimate_at: EstimateAt, promises: Promises, rate_rps: Number) -> Bools:
    """Which configurations keep every promise at this rate, and their own caps."""
    met: Bools | None = None
    for seen, promise in promises:
        estimate = estimate_at(rate_rps, seen)
        met = estimate.fits if met is None else met & estimate.fits
        if promise.limits:
            missed = sum(estimate.exceeds(metric, limit_s) for metric, limit_s in promise.limits.items())
            met = met & (np.asarray(missed) <= 1 - promise.attainment)
        for goal in promise.goals:
            met = met & (estimate.exceeds(goal.metric, goal.limit_s) <= 1 - goal.share)
        for metric, limit_s in promise.means.items():
            met = met & (_mean_s(estimate, metric) <= limit_s)
    assert met is not None
    return met


def highest_rate_rps(at: Callable[[Index], EstimateAt], promises: Promises, groups: Index) -> Floats:
    """The highest rate of each configuration that keeps every promise; 0 where none does. Requests per second.

    `at` gives the estimates of chosen rows. Load is linear in the rate, so one request per second tells the rate at
    full load; halving below it finds the rest, to 2^-9 of it. Rows that cannot be the best of their group any more
    are left where they are: their rate is then only known to be at least what is answered, and below the best.
    """
    rows = np.arange(len(groups))
    load = np.asarray(at(rows)(1.0, None).load, dtype=float)
    low, high = np.zeros(len(groups)), 1 / np.maximum(np.broadcast_to(load, groups.shape), 1e-12)
    estimate_at = at(rows)
    for halving in range(HALVINGS):
        middle = (low[rows] + high[rows]) / 2
        met = keeps(estimate_at, promises, middle)
        low[rows], high[rows] = np.where(met, middle, low[rows]), np.where(met, high[rows], middle)
        if halving % CULL_EACH == CULL_EACH - 1:
            best = np.zeros(int(groups.max(initial=0)) + 1)
            np.maximum.at(best, groups, low)
            rows = rows[high[rows] > best[groups[rows]]]
            estimate_at = at(rows)
    return low


def _mean_s(estimate: Estimate, metric: Metric) -> Floats:
    ttft, tpot = getattr(estimate, "mean_ttft_s", None), getattr(estimate, "mean_tpot_s", None)
    if metric == "e2e" and ttft is not None and tpot is not None:
        steps = estimate.outputs.values @ estimate.outputs.weights  # type: ignore[attr-defined]
        return np.asarray(ttft + tpot * steps)
    found = ttft if metric == "ttft" else tpot
    assert found is not None, "a promise was put to a pool that cannot answer it"
    return np.asarray(found)
