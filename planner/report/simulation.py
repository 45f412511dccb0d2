"""A simulated run in tables: latencies with their error, throughput, preemptions, and the share within the SLO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
from rich.table import Table

from planner.queueing import Metric
from planner.report.values import milliseconds, plain
from planner.search.traffic import Promise
from planner.simulate import Outcome
from planner.simulate.outcome import WARM_UP_SHARE
from planner.slo import Slo, SloClass

Tokens = npt.NDArray[np.int64]

METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class SimulatedClass:
    """One class of a run: requests counted (after the warm-up), the share that met every limit of a request, and
    whether every promise is met."""

    name: str
    requests: int
    within: float
    required: float
    met: bool


def classes_of(outcome: Outcome, slo: Slo, streams: Sequence[str], stream: Tokens) -> list[SimulatedClass]:
    """How each class of the SLO fared; `stream` numbers the class of every request, as `streams` names them."""
    counted = np.arange(len(stream)) >= int(len(stream) * WARM_UP_SHARE)
    found = []
    for at, name in enumerate(streams):
        mine = counted & (stream == at)
        if name in slo.classes and mine.any():
            found.append(_class_of(name, slo.of(name), outcome, mine))
    return found


def _class_of(name: str, promised: SloClass, outcome: Outcome, mine: npt.NDArray[np.bool_]) -> SimulatedClass:
    """An answer of one token has no TPOT to miss."""
    promise = Promise.of(promised)
    values = {"ttft": outcome.ttft_s[mine], "tpot": outcome.tpot_s[mine], "e2e": outcome.e2e_s[mine]}
    good = np.ones(int(mine.sum()), dtype=bool)
    for metric, limit_s in promised.request_limits_s.items():
        good &= ~(values[metric] > limit_s)
    within = float(good.mean())
    met = not promise.limits or within >= promise.attainment
    met &= all(float(np.mean(~(values[goal.metric] > goal.limit_s))) >= goal.share for goal in promise.goals)
    met &= all(float(np.nanmean(values[metric])) <= limit_s for metric, limit_s in promise.means.items())
    return SimulatedClass(
        name=name, requests=int(mine.sum()), within=within, required=promise.attainment, met=bool(met)
    )


def outcome_table(outcome: Outcome) -> Table:
    """P50, P90 and P99 in milliseconds, each with the half-width of its 95 % interval."""
    table = Table("ms", "mean", "P50", "P90", "P99")
    for column in table.columns[1:]:
        column.justify = "right"
    for metric in METRICS:
        values = outcome.values_s(metric)
        mean = milliseconds(1e3 * float(values.mean())) if len(values) else "—"
        table.add_row(metric.upper(), mean, *(_with_error(outcome, metric, share) for share in SHARES))
    return table


def outcome_lines(outcome: Outcome, classes: Sequence[SimulatedClass]) -> Iterator[str]:
    """What stands below the table."""
    span_s = float(outcome.finish_s.max())
    yield (
        f"{len(outcome.sent_s):,} requests in {span_s:,.1f} simulated s: {len(outcome.sent_s) / span_s:.3g} requests/s,"
        f" {outcome.output_tok_per_s:,.1f} output tokens/s, {outcome.preemptions:,} preemptions"
    )
    for at, engine in enumerate(outcome.engines):
        yield (
            f"engine {at}: busy {engine.busy_s / span_s:.0%}, {engine.sequence_seconds / span_s:,.1f} sequences on "
            f"average, at most {engine.peak_kv_blocks:,} KV blocks, {engine.preemptions:,} preemptions"
        )
    for one in classes:
        verdict = "met" if one.met else "missed"
        within = f"{one.within:.2%} of {one.requests:,} requests within every limit"
        yield f"{one.name}: {within}, {one.required:.2%} promised: {verdict}"


def outcome_tree(outcome: Outcome, classes: Sequence[SimulatedClass]) -> object:
    """For programs; milliseconds and seconds as the names say."""
    latencies: dict[str, object] = {metric: _latency_tree(outcome, metric) for metric in METRICS}
    span_s = float(outcome.finish_s.max())
    return plain(
        {
            "requests": len(outcome.sent_s),
            "span_s": span_s,
            "request_rate_rps": len(outcome.sent_s) / span_s,
            "out_tok_s": outcome.output_tok_per_s,
            "preemptions": outcome.preemptions,
            "latencies": latencies,
            "engines": [
                {
                    "busy_share": engine.busy_s / span_s,
                    "mean_sequences": engine.sequence_seconds / span_s,
                    "peak_kv_blocks": engine.peak_kv_blocks,
                    "preemptions": engine.preemptions,
                }
                for engine in outcome.engines
            ],
            "classes": {
                one.name: {
                    "requests": one.requests, "within": one.within, "required": one.required, "met": one.met,
                }
                for one in classes
            },
        }
    )  # fmt: skip


def _latency_tree(outcome: Outcome, metric: Metric) -> Mapping[str, float]:
    values = outcome.values_s(metric)
    tree = {"mean_ms": 1e3 * float(values.mean()) if len(values) else float("nan")}
    for share in SHARES:
        found = outcome.interval_s(metric, share)
        tree[f"p{share * 100:g}_ms"] = 1e3 * found.value
        tree[f"p{share * 100:g}_half_width_ms"] = 1e3 * found.half_width
    return tree


def _with_error(outcome: Outcome, metric: Metric, share: float) -> str:
    found = outcome.interval_s(metric, share)
    error = f" ± {milliseconds(1e3 * found.half_width)}" if isfinite(found.half_width) else ""
    return milliseconds(1e3 * found.value) + error
