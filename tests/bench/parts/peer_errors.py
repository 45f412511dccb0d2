"""What a load generator reported beside what the server did in the same run. Pure.

Other tools' reports name no request, so these are differences of distributions, not of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from parts.children import BenchFailed

from loadtest.document import MetricFigures
from loadtest.truth import Written
from loadtest.types import Record

# A tool that tells no gaps between tokens may tell their mean per request, (last - first) / (tokens - 1).
INSTEAD = {"gap": "tpot"}
COLUMNS = {"ttft_net": "TTFT error", "gap": "gap error", "e2e_net": "E2E error"}
NOT_TOLD = "not told"


@dataclass(frozen=True)
class Served:
    """One run as the server saw it: each metric's values in milliseconds, and when it all was (monotonic)."""

    metrics_ms: Mapping[str, np.ndarray]
    answers: int
    begun_s: float
    """The first request had come."""
    ended_s: float
    """The last token was written."""

    @property
    def rps(self) -> float:
        return self.answers / (self.ended_s - self.begun_s)


def served(written: Sequence[Written], requests: int, tokens: int) -> Served:
    """Of the load's whole answers: what a tool asks beforehand, to warm up, is left out.

    Raises:
        BenchFailed: when there was no such answer.
    """
    whole = [one for one in written if one.status == 200 and len(one.token_write_ns) > 1]
    whole = sorted(whole, key=lambda one: one.received_ns)[-requests:]
    if not whole:
        raise BenchFailed("the server gave not one answer")
    wrote_ns = [np.array(one.token_write_ns, dtype=np.int64) for one in whole]
    received_ns = np.array([one.received_ns for one in whole], dtype=np.int64)
    first_ns, last_ns = (np.array([wrote[end] for wrote in wrote_ns]) for end in (0, -1))
    metrics_ns = {
        "ttft_net": first_ns - received_ns,
        "tpot": (last_ns - first_ns) / (tokens - 1),
        "e2e_net": last_ns - received_ns,
    }
    if all(len(wrote) == tokens for wrote in wrote_ns):  # the truth server in C logs the first and the last only
        metrics_ns["gap"] = np.concatenate([np.diff(wrote) for wrote in wrote_ns])
    return Served(
        {name: values_ns / 1e6 for name, values_ns in metrics_ns.items()},
        answers=len(whole),
        begun_s=received_ns.min() / 1e9,
        ended_s=last_ns.max() / 1e9,
    )


def figures(records: Sequence[Record]) -> dict[str, MetricFigures]:
    """Our own client's answers, as another tool would report them."""
    values_ns = {
        "ttft_net": np.array([one.first_ns - one.send_ns for one in records]),
        "gap": np.concatenate([one.gaps_ns for one in records]),
        "tpot": np.array([(one.last_ns - one.first_ns) / len(one.gaps_ns) for one in records]),
        "e2e_net": np.array([one.last_ns - one.send_ns for one in records]),
    }
    return {
        name: MetricFigures(
            mean_ms=float(values.mean()) / 1e6, completed_ms={"p99": float(np.quantile(values, 0.99)) / 1e6}
        )
        for name, values in values_ns.items()
    }


def error_of(told: Mapping[str, MetricFigures], truth: Served, metric: str) -> str:
    """Its mean and its P99 less the server's, in milliseconds; a `t` behind them where TPOT stands in for the gaps."""
    for name, mark in ((metric, " "), (INSTEAD.get(metric), "t")):
        found, truth_ms = told.get(name or ""), truth.metrics_ms.get(name or "")
        p99_ms = found.completed_ms.get("p99") if found else None
        if found and found.mean_ms is not None and p99_ms is not None and truth_ms is not None:
            return f"{found.mean_ms - truth_ms.mean():.2f} /{p99_ms - np.quantile(truth_ms, 0.99):7.2f}{mark}"
    return f"{NOT_TOLD} "
