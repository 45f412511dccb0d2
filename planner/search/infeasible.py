"""Why no plan holds, and what comes nearest: a laxer promise, more GPUs, more money, less traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from planner.fit import gpu_memory_report
from planner.length_views import running_contexts
from planner.queueing import Metric
from planner.search.answers import Constraint, Infeasible, Nearest, NearestSlo
from planner.search.binding import breaking, estimate_at
from planner.search.changes import METRICS, with_limits
from planner.search.closed import Found, search
from planner.search.fleets import Fleet
from planner.search.question import PlanQuestion
from planner.search.traffic import Promise
from planner.search.write import Chosen

# Limits are laxened up to this factor, to a precision of one percent.
MOST_LAXER, PRECISION = 1024.0, 0.01
# A rate so low that only the engine's own speed counts.
TINY_RATE_SHARE = 0.01


def infeasible(question: PlanQuestion, found: Found, *, tried: Sequence[Chosen] = ()) -> Infeasible:
    """The result for a question whose fleets are none, too many or too dear, or all failed in simulation."""
    if not found.prepared.fit.fits.any():
        constraint, problem, nearest = _no_memory(question, found)
    elif not found.fleets:
        constraint, problem, nearest = _no_speed(question, found)
    elif tried:
        constraint, problem, nearest = _failed(question, found, tried)
    else:
        constraint, problem, nearest = _too_much(question, found)
    return Infeasible(
        constraint=constraint,
        problem=problem,
        nearest=tuple(nearest),
        considered=found.considered,
        fitting=found.fitting,
        skipped=found.prepared.skipped,
    )


Reason = tuple[Constraint, str, list[Nearest]]


def _no_memory(question: PlanQuestion, found: Found) -> Reason:
    """The roomiest engine, and how many devices the weights alone would fill."""
    forms = found.prepared.forms
    room = [forms.devices[pair.device].memory_bytes * forms.forms[pair.form].layout.devices for pair in forms.pairs]
    pair = forms.pairs[int(np.argmax(room))]
    device, form = forms.devices[pair.device], forms.forms[pair.form]
    space = question.space
    report = gpu_memory_report(
        form.stored_shape(question.shape),
        form.engine(
            question,
            budget_tokens=min(space.budgets_tokens),
            max_num_seqs=min(space.max_num_seqs),
            max_len=found.prepared.max_len,
        ),
        running_contexts(found.traffic.lengths),
        memory_bytes=device.memory_bytes,
        device=device.label,
        footprint=question.footprint,
    )
    problem = f"even {form.layout.devices} x {device.name} ({form.name}) has no room: {report.remedy}"
    whole_bytes = form.stored_shape(question.shape).weight_bytes(exact_bytes=question.exact_weight_bytes)
    needed = whole_bytes / (device.memory_bytes * question.gpu_memory_utilization)
    gpus = 2 ** int(np.ceil(np.log2(max(1.0, needed * 1.15))))
    return (
        "memory",
        problem,
        [
            Nearest(
                kind="gpus",
                text=f"about {gpus} x {device.name} per replica would hold the weights: allow higher degrees",
                gpus=gpus,
            ),
            Nearest(kind="device", text="name a device with more memory, or pack the weights further"),
        ],
    )


def _no_speed(question: PlanQuestion, found: Found) -> Reason:
    """No engine keeps the promise even alone, or each is full at once: which promise breaks, and how far it must go."""
    broken = _broken_alone(found)
    constraint: Constraint = broken.most_common(1)[0][0] if broken else "throughput"
    nearest = [one for one in _laxer(question, found, lambda fleets: bool(fleets)) if one]
    metrics = [metric for metric in METRICS if any(_alone(one, metric) for one in nearest)]
    if constraint not in metrics and metrics:
        constraint = metrics[0]
    problem = f"no engine keeps the {constraint.upper()} promise, however little traffic it gets"
    return constraint, problem, nearest


def _alone(nearest: Nearest, metric: Metric) -> bool:
    return bool(nearest.slo) and all(one.metric == metric for one in nearest.slo)


def _broken_alone(found: Found) -> Counter[Constraint]:
    """What breaks, design by design of the quickest pairs, at next to no traffic."""
    broken: Counter[Constraint] = Counter()
    for designs in found.designs:
        pairs, first = np.unique(designs.pair, return_index=True)
        for row in first[:: max(1, len(pairs) // 16)]:
            at = estimate_at(designs, int(row), found.traffic, 1.0)
            load = float(np.max(at(1.0, None).load))
            if not load:  # answers of one token give a decode pool nothing to do
                continue
            what = breaking(at, designs.role, found.traffic, TINY_RATE_SHARE / load).what
            broken["throughput" if what in ("throughput", "max_num_seqs", "kv_cache") else what] += 1  # type: ignore[index]
    return broken


def _too_much(question: PlanQuestion, found: Found) -> Reason:
    """Fleets hold, but not within the limits on GPUs or dollars."""
    fewest = min(found.fleets, key=lambda fleet: (fleet.gpus, fleet.usd_per_hour))
    nearest: list[Nearest] = []
    over_gpus = question.total_gpus is not None and fewest.gpus > question.total_gpus

    def allowed(fleets: Sequence[Fleet]) -> bool:
        return any(_within(question, fleet) for fleet in fleets)

    if over_gpus:
        text = f"{fewest.gpus} GPUs would do: {fewest.name} at {fewest.usd_per_hour:.2f} USD/h"
        nearest.append(Nearest(kind="gpus", text=text, gpus=fewest.gpus, usd_per_hour=fewest.usd_per_hour))
        problem = f"the promise takes at least {fewest.gpus} GPUs, and {question.total_gpus} are allowed"
    else:
        cheapest = found.fleets[0]
        text = f"{cheapest.usd_per_hour:.2f} USD/h would do: {cheapest.name}"
        nearest.append(Nearest(kind="price", text=text, usd_per_hour=cheapest.usd_per_hour, gpus=cheapest.gpus))
        problem = (
            f"the cheapest plan costs {cheapest.usd_per_hour:.2f} USD/h, and {question.most_usd_per_hour} is allowed"
        )
    rate = _highest_share(question, found)
    if rate > 0:
        rps = rate * found.traffic.rate_rps
        text = f"at {rps:.3g} requests/s instead of {found.traffic.rate_rps:.3g} the limits would do"
        nearest.append(Nearest(kind="rate", text=text, rate_rps=rps))
    nearest += [one for one in _laxer(question, found, allowed) if one]
    return ("gpus" if over_gpus else "price"), problem, nearest


def _failed(question: PlanQuestion, found: Found, tried: Sequence[Chosen]) -> Reason:
    """The closed forms had hope and the simulations had not, or nothing is sure enough."""
    held = [one for one in tried if one.trial.met]
    if held:
        surest = max(held, key=lambda one: one.sure)
        asked = question.confidence or 0.0
        if surest.sure < asked:
            text = f"{surest.fleet.name} holds with probability {surest.sure:.2f} at {surest.usd_per_hour:.2f} USD/h"
            nearest = Nearest(kind="price", text=text, usd_per_hour=surest.usd_per_hour, gpus=surest.gpus)
            return "throughput", f"no plan is as sure as {asked:g}", [nearest]
        return _too_much(question, found)
    best = max(tried, key=lambda one: min(item.attainment.value for item in one.trial.classes.values()))
    slo: list[NearestSlo] = []
    for one in found.traffic.classes:
        prediction = best.trial.classes[one.name]
        for metric, asked_s in one.promise.limits.items():
            seen = {"ttft": prediction.ttft_ms, "tpot": prediction.tpot_ms, "e2e": prediction.e2e_ms}[metric]
            if seen is not None and seen.p99 > asked_s * 1e3:
                slo.append(_nearest_slo(one.name, metric, "limit", asked_s, seen.p99 / 1e3))
    constraint: Constraint = slo[0].metric if slo else "throughput"
    problem = f"{best.fleet.name} came nearest in simulation and still missed"
    return constraint, problem, [Nearest(kind="slo", text=_slo_text(slo), slo=tuple(slo))] if slo else []


def _within(question: PlanQuestion, fleet: Fleet) -> bool:
    few = question.total_gpus is None or fleet.gpus <= question.total_gpus
    return few and (question.most_usd_per_hour is None or fleet.usd_per_hour <= question.most_usd_per_hour)


def _highest_share(question: PlanQuestion, found: Found) -> float:
    """The highest share of the traffic that the limits allow, to a percent; 0 if none."""
    low, high = 0.0, 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        fleets = search(found.prepared, found.traffic.scaled(middle)).fleets
        held = any(_within(question, fleet) for fleet in fleets)
        low, high = (middle, high) if held else (low, middle)
    return low


def _laxer(question: PlanQuestion, found: Found, enough: Callable[[Sequence[Fleet]], bool]) -> Iterator[Nearest | None]:
    """The smallest factor on one metric's limits, or on all of them, that leaves a plan."""
    present = [m for m in METRICS if any(one.promise.tightest_s(m) is not None for one in found.traffic.classes)]
    single = [{metric: 1.0} for metric in present]
    for metrics in [*single, *([dict.fromkeys(present, 1.0)] if len(present) > 1 else [])]:
        yield _smallest_factor(found, list(metrics), enough)


def _smallest_factor(
    found: Found, metrics: Sequence[Metric], enough: Callable[[Sequence[Fleet]], bool]
) -> Nearest | None:
    def holds(factor: float) -> bool:
        return enough(search(found.prepared, with_limits(found.traffic, dict.fromkeys(metrics, factor))).fleets)

    low, high = 1.0, 2.0
    while not holds(high):
        low, high = high, high * 2
        if high > MOST_LAXER:
            return None
    while high / low > 1 + PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    slo = [entry for one in found.traffic.classes for entry in _scaled_entries(one.name, one.promise, metrics, high)]
    return Nearest(kind="slo", text=_slo_text(slo), slo=tuple(slo))


def _scaled_entries(name: str, promise: Promise, metrics: Sequence[Metric], factor: float) -> Iterator[NearestSlo]:
    for metric in metrics:
        if metric in promise.limits:
            yield _nearest_slo(name, metric, "limit", promise.limits[metric], promise.limits[metric] * factor)
        for goal in promise.goals:
            if goal.metric == metric:
                yield _nearest_slo(name, metric, f"p{goal.share * 100:g}", goal.limit_s, goal.limit_s * factor)
        if metric in promise.means:
            yield _nearest_slo(name, metric, "mean", promise.means[metric], promise.means[metric] * factor)


def _nearest_slo(name: str, metric: Metric, statistic: str, asked_s: float, feasible_s: float) -> NearestSlo:
    return NearestSlo(
        class_name=name, metric=metric, statistic=statistic, asked_ms=asked_s * 1e3, feasible_ms=feasible_s * 1e3
    )


def _slo_text(slo: Sequence[NearestSlo]) -> str:
    return "; ".join(
        f"{one.class_name} {one.metric.upper()} {one.statistic} {one.feasible_ms:,.0f} ms "
        f"instead of {one.asked_ms:,.0f}"
        for one in slo
    )
