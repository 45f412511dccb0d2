"""results.json: what a plan predicted and what was measured, for people and for the planner's calibration. Pure.

    format: ferry-results/1
    date: 2026-11-25                     # of the measurement, UTC
    versions: {ferry: 0.1.0, server: 0.32.0}     # "unknown" where nobody says
    plan: {file, model, slo_class, rate_rps, isl, osl, usd_per_hour, pools: {name: {role, device, replicas, …}}}
    stopped: null                        # why not all rates are there, where they are not
    points:                              # one for each rate, at 90 %, 100 % and 110 % of the planned one
      - share: 1.0
        report: load-3f….json            # of the same folder, with every record beside it
        verdict: met                     # of `ferry load`; INVALID: the client was the limit, measured is no use
        failed: {}                       # requests that did not complete, by kind
        measured: {isl, osl, request_rate, requests, ttft_ms: {mean, p50, p90, p99}, tpot_ms: {…}, out_tok_s}
        attainment: {due, met, low, high, share}
        usd_per_million_good_tokens: 1.2
        predicted:                       # none, one or both of the plan's own figures and the performance model's
          - {source, ttft_ms: {p50, p90, p99}, tpot_ms, e2e_ms, attainment, out_tok_s, why_not}
        off: {plan, simulated: {ttft_p50: 0.07}}     # measured / predicted - 1

`measured` has the keys of a point of the planner's profiles. Figures that are not known are null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.document import finite
from loadtest.metrics import Attainment, Distribution
from loadtest.report import Report, Verdict
from loadtest.types import Outcome
from loadtest.validate.prediction import SHARES, Predicted
from planner import Plan

FORMAT = "ferry-results/1"


@dataclass(frozen=True, slots=True)
class Measured:
    """One load and what it gave, over completed requests. Lengths are the server's means; times in milliseconds."""

    isl: float | None
    osl: float | None
    request_rate: float
    requests: int
    ttft_ms: Mapping[str, float] | None
    tpot_ms: Mapping[str, float] | None
    out_tok_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """One rate of a validation; `share` of the planned one."""

    share: float
    report: str
    verdict: str
    failed: Mapping[str, int]
    measured: Measured
    attainment: Mapping[str, Any] | None
    usd_per_million_good_tokens: float | None
    predicted: tuple[Predicted, ...]
    off: Mapping[str, Mapping[str, float]]


def point_of(share: float, report: Report, report_file: str, predicted: Sequence[Predicted]) -> Point:
    total = report.total
    measured = Measured(
        isl=_known(total.prompt_tokens),
        osl=_known(total.output_tokens),
        request_rate=total.due_rps,
        requests=total.outcomes.get(Outcome.OK, 0),
        ttft_ms=_spread(total.distributions.get("ttft")),
        tpot_ms=_spread(total.distributions.get("tpot")),
        out_tok_s=total.output_tokens_per_s,
    )
    return Point(
        share=share,
        report=report_file,
        verdict=report.verdict.value,
        failed={outcome.value: count for outcome, count in sorted(total.outcomes.items()) if outcome is not Outcome.OK},
        measured=measured,
        attainment=_attainment(total.attainment),
        usd_per_million_good_tokens=report.cost.usd_per_million_good_tokens if report.cost is not None else None,
        predicted=tuple(predicted),
        off={one.source: off for one in predicted if (off := _off(measured, total.attainment, one))},
    )


def results(
    plan: Plan,
    plan_file: str,
    slo_class: str,
    points: Sequence[Point],
    *,
    date: str,
    versions: Mapping[str, str],
    stopped: str = "",
) -> dict[str, Any]:
    """The document, as JSON. `stopped`: why these are not the points of all rates, where they are not."""
    tree = {
        "format": FORMAT,
        "date": date,
        "versions": dict(versions),
        "plan": {
            "file": plan_file,
            "model": plan.model,
            "slo_class": slo_class,
            "rate_rps": plan.traffic.rate_rps,
            "isl": plan.traffic.isl.mean,
            "osl": plan.traffic.osl.mean,
            "usd_per_hour": plan.cost.expected_usd_per_hour,
            "pools": {
                name: {
                    "role": pool.role,
                    "device": pool.device,
                    "replicas": pool.replicas,
                    "weights": pool.weights,
                    "engine": pool.engine.arguments,
                }
                for name, pool in plan.pools.items()
            },
        },
        "stopped": stopped or None,
        "points": [asdict(point) for point in points],
    }
    strict: dict[str, Any] = finite(tree)
    return strict


def verdict_of(points: Sequence[Point]) -> Verdict:
    """Of the plan: its own rate counts, and a run that the client limited says nothing."""
    if any(point.verdict == Verdict.INVALID.value for point in points):
        return Verdict.INVALID
    planned = min(points, key=lambda point: abs(point.share - 1.0))
    return Verdict(planned.verdict)


def _attainment(found: Attainment | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "share": found.share}


def _spread(found: Distribution | None) -> dict[str, float] | None:
    if found is None or not found.count:
        return None
    shares = {f"p{100 * q:g}": value for q, value in found.completed_ms.items()}
    return {"mean": found.mean_ms, **{share: shares[share] for share in SHARES}}


def _off(measured: Measured, attainment: Attainment | None, predicted: Predicted) -> dict[str, float]:
    off = {}
    for name, found, told in (
        ("ttft", measured.ttft_ms, predicted.ttft_ms),
        ("tpot", measured.tpot_ms, predicted.tpot_ms),
    ):
        for share in SHARES:
            if found is not None and told is not None and told.get(share):
                off[f"{name}_{share}"] = found[share] / told[share] - 1
    if predicted.out_tok_s:
        off["out_tok_s"] = measured.out_tok_s / predicted.out_tok_s - 1
    if predicted.attainment is not None and attainment is not None and attainment.due:
        # In points, not in parts: it is a share already.
        off["attainment_points"] = attainment.share - predicted.attainment
    return off


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
