"""The report of a run: its figures, what it says about the client, and the verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from loadtest.audit import Audit, faults
from loadtest.cost import Cost, cost_of
from loadtest.document import FORMAT, finite
from loadtest.jobs import models_of
from loadtest.judge import Judged, judge
from loadtest.metrics import DEFINITIONS, Distribution, Summary, by_class, in_window, quantile, summarise
from loadtest.moves import MovesTotal, total_of
from loadtest.remedies import for_records
from loadtest.spec import RunResult
from loadtest.types import Outcome, Record
from loadtest.watch.summary import ServerTotal, server_total

# Prompts may be long, and one after the other names the same few.
MODELS_LOOKED_FOR = 100


class Verdict(StrEnum):
    MET = "met"
    MISSED = "missed"
    INVALID = "INVALID"  # the client was the limit: the figures say nothing about the server
    NO_SLO = "no SLO"


@dataclass(frozen=True, slots=True)
class Report:
    run_id: str
    started_at_s: float
    """Seconds since 1970."""
    interrupted: bool
    verdict: Verdict
    certain: bool
    """True if the whole confidence interval of the attainment lies on the verdict's side."""
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    total: Summary
    classes: Mapping[str, Summary]
    """By SLO class, where there is more than one."""
    audit: Audit
    judged: Mapping[str, Judged] = field(default_factory=dict)
    """By SLO class, where that has an SLO; "" is the class of requests that have none."""
    moves: MovesTotal | None = None
    """As the answers tell; None where none did."""
    server: ServerTotal | None = None
    cost: Cost | None = None


def build(result: RunResult) -> Report:
    """Everything is counted from `result.records`, so a report can be made again from a saved run."""
    spec = result.spec
    records = in_window(result.records, result.start_ns, spec.warmup_s)
    open_loop = all(job.due_s is not None for job in spec.jobs)
    window_s = _window_s(result, records, open_loop=open_loop)
    total = summarise(records, spec.slo, window_s, spec.class_slos, open_loop=open_loop)
    parts = by_class(records) or {"": []}
    classes = {name: summarise(some, spec.slo_of(name), window_s, open_loop=open_loop) for name, some in parts.items()}
    judged = {
        name: judge(parts[name], spec.slo_of(name), summary.attainment)
        for name, summary in classes.items()
        if summary.attainment is not None
    }
    audit = _audit(result, records, total)
    slos = [spec.slo_of(name) for name in classes]
    found = faults(
        audit,
        ttft_ms=min((slo.ttft_ms for slo in slos if slo.ttft_ms is not None), default=_median_ms(total)),
        excused=result.interrupted or spec.limits.concurrency is not None,
        died=result.died,
    )
    verdict, certain = _verdict(judged, found)
    rent = spec.rent
    return Report(
        run_id=result.run_id,
        started_at_s=result.started_at_s,
        interrupted=result.interrupted,
        verdict=verdict,
        certain=certain,
        faults=found,
        warnings=_warnings(result, total),
        total=total,
        classes=classes if len(classes) > 1 else {},
        audit=audit,
        judged=judged,
        moves=total_of(record.moves for record in records),
        server=server_total(result.watched) if result.watched is not None else None,
        cost=cost_of(records, spec.slo_of, window_s, rent, tokens_per_s=total.output_tokens_per_s) if rent else None,
    )


def as_json(report: Report, result: RunResult) -> dict[str, Any]:
    """The report and the question that it answers, for a file. Headers are left out: they may hold a key."""
    spec = result.spec
    tree = {
        "format": FORMAT,
        "run_id": report.run_id,
        "started_at_s": report.started_at_s,
        "interrupted": report.interrupted,
        "verdict": report.verdict.value,
        "certain": report.certain,
        "faults": list(report.faults),
        "warnings": list(report.warnings),
        "spec": {
            "base_url": spec.target.base_url,
            "endpoint": spec.target.endpoint,
            "jobs": len(spec.jobs),
            "models": models_of(spec.jobs[:MODELS_LOOKED_FOR]),
            "workers": spec.workers,
            "closed_loop": all(job.due_s is None for job in spec.jobs),
            "warmup_s": spec.warmup_s,
            "stall_ms": spec.stall_ms,
            "limits": asdict(spec.limits),
            "slo": asdict(spec.slo),
            "class_slos": {name: asdict(slo) for name, slo in spec.class_slos.items()},
        },
        "total": _summary_json(report.total),
        "classes": {name: _summary_json(summary) for name, summary in report.classes.items()},
        "judged": {name: asdict(judged) for name, judged in report.judged.items()},
        "client": {**asdict(report.audit), "reused_share": report.audit.reused_share},
        "moves": report.moves and asdict(report.moves),
        "server": report.server and asdict(report.server),
        "cost": report.cost and asdict(report.cost),
        "definitions": dict(DEFINITIONS),
    }
    strict: dict[str, Any] = finite(tree)
    return strict


def _window_s(result: RunResult, records: Sequence[Record], *, open_loop: bool) -> float:
    """From the end of the warm-up on: to the last end, in an open loop until no more would have been due.

    Where that is not known it is a mean gap after the last due time: else ten requests at 1/s, due within 9 s, would
    read as 1.1/s.
    """
    if not records:
        return 0.0
    spec = result.spec
    if open_loop and spec.lasts_s is not None and not result.interrupted and spec.lasts_s > spec.warmup_s:
        return spec.lasts_s - spec.warmup_s
    from_ns = result.start_ns + round(spec.warmup_s * 1e9)
    last_due_ns = max(record.due_ns for record in records)
    if open_loop and last_due_ns > from_ns:
        return (last_due_ns - from_ns) / 1e9 * len(records) / max(1, len(records) - 1)
    return (max(record.end_ns for record in records) - from_ns) / 1e9


def _audit(result: RunResult, records: Sequence[Record], total: Summary) -> Audit:
    lags_ms = np.sort([record.lag_ns / 1e6 for record in records if record.lag_ns is not None])
    sent = sum(1 for record in records if record.outcome is not Outcome.UNSENT)
    return Audit(
        workers=result.workers,
        due=len(records),
        sent=sent,
        lag_p50_ms=quantile(lags_ms, 0.5),
        lag_p99_ms=quantile(lags_ms, 0.99),
        lag_max_ms=quantile(lags_ms, 1.0),
        offered_rps=total.due_rps,
        delivered_rps=sent / total.window_s if total.window_s else math.nan,
    )


def _median_ms(total: Summary) -> float | None:
    ttft = total.distributions.get("ttft")
    return ttft.completed_ms[0.5] if ttft is not None else None


def _verdict(judged: Mapping[str, Judged], found: Sequence[str]) -> tuple[Verdict, bool]:
    """Every class must meet its own SLO; the first sure miss makes a miss sure."""
    if found:
        return Verdict.INVALID, True
    if not judged:
        return Verdict.NO_SLO, True
    missed = [one for one in judged.values() if not one.met]
    if missed:
        return Verdict.MISSED, any(one.certain for one in missed)
    return Verdict.MET, all(one.certain for one in judged.values())


def _warnings(result: RunResult, total: Summary) -> tuple[str, ...]:
    found, spec = [], result.spec
    for name, why in (
        ("no_usage", "had no usage: their events are counted as one token each"),
        ("first_tokens_guessed", "came in bundles: the tokens of their first event are taken to be the mean"),
        ("no_done", "ended without [DONE]"),
        ("prompt_miscounted", "had prompts of another length than was planned: is --tokenizer that of the model?"),
        ("resent", "were sent twice, since the idle connection had died"),
    ):
        if total.flags.get(name):
            found.append(f"{total.flags[name]} answers {why}")
    for worker in result.workers:
        if worker.spool_error:
            found.append(f"raw answers had to stay in memory: {worker.spool_error}")
        if abs(worker.clock_step_ms) > 1.0:
            found.append(f"the wall clock moved by {worker.clock_step_ms:.1f} ms: times of other logs may not fit")
    if result.workers and not all(worker.uvloop for worker in result.workers):
        found.append("uvloop is not installed: the client takes more CPU than it needs")
    whole = sum(record.ok and not record.streamed for record in result.records)
    if whole and any(slo.needs_streams for slo in (spec.slo, *spec.class_slos.values())):
        found.append(f"{whole} answers were no streams: their end is taken for the TTFT, TPOT and gaps were not seen")
    found += for_records(result.records, spec.target.endpoint, result.served)
    return tuple(dict.fromkeys(found))


def _summary_json(summary: Summary) -> dict[str, Any]:
    attainment = summary.attainment
    return {
        "window_s": summary.window_s,
        "due": summary.due,
        "outcomes": {outcome.value: count for outcome, count in sorted(summary.outcomes.items())},
        "flags": dict(sorted(summary.flags.items())),
        "failures": {outcome.value: detail for outcome, detail in summary.details.items()},
        "attainment": attainment and {**asdict(attainment), "share": attainment.share},
        "goodput_rps": summary.goodput_rps,
        "due_rps": summary.due_rps,
        "completed_rps": summary.completed_rps,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "mean_prompt_tokens": summary.prompt_tokens,
        "mean_output_tokens": summary.output_tokens,
        "metrics": {name: _distribution_json(found) for name, found in summary.distributions.items()},
    }


def _distribution_json(found: Distribution) -> dict[str, Any]:
    return {
        "count": found.count,
        "mean_ms": found.mean_ms,
        "max_ms": found.max_ms,
        "completed_ms": {f"p{100 * q:g}": value for q, value in found.completed_ms.items()},
        "all_ms": {f"p{100 * q:g}": value for q, value in found.all_ms.items()},
    }
