"""Whether an SLO was met, and how sure that is. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from loadtest.metrics import CONFIDENCE, Attainment, Values, quantile, wilson
from loadtest.types import Promise, Record, Slo


@dataclass(frozen=True, slots=True)
class JudgedPromise:
    """One promise about all requests together; `certain`: the confidence interval lies on the verdict's side."""

    promise: Promise
    measured_ms: float
    """Infinite where too many did not complete."""
    kept: bool
    certain: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """One SLO. `certain`: of what decides the verdict."""

    met: bool
    certain: bool
    wanted: float
    """The share that must meet the limits."""
    promises: tuple[JudgedPromise, ...] = ()


def judge(records: Sequence[Record], slo: Slo, attainment: Attainment) -> Judged:
    """The attainment against the wanted share, and each promise over all of these requests."""
    share_met = bool(attainment.due) and attainment.share >= slo.attainment
    share_certain = attainment.low >= slo.attainment if share_met else attainment.high < slo.attainment
    promises = tuple(_judged(records, promise) for promise in slo.promises)
    parts = [(share_met, share_certain), *((one.kept, one.certain) for one in promises)]
    met = all(kept for kept, _ in parts)
    # All of it must be sure to say met; one sure miss is enough to say missed.
    certain = all(sure for _, sure in parts) if met else any(sure for kept, sure in parts if not kept)
    return Judged(met, certain, slo.attainment, promises)


def _judged(records: Sequence[Record], promise: Promise) -> JudgedPromise:
    values_ms, failed = _values_ms(records, promise.metric)
    if promise.percentile is None:
        return _judged_mean(values_ms, promise)
    share = promise.percentile / 100
    measured_ms = quantile(values_ms, share, failed)
    within = int(np.searchsorted(values_ms, promise.limit_ms, side="right"))
    low, high = wilson(within, len(values_ms) + failed)
    kept = measured_ms <= promise.limit_ms  # not for NaN: nothing seen is nothing kept
    return JudgedPromise(promise, measured_ms, kept, low >= share if kept else high < share)


def _judged_mean(values_ms: Values, promise: Promise) -> JudgedPromise:
    """Over completed requests: with one infinite latency there is no mean. That enough complete is the share's part."""
    mean_ms = float(values_ms.mean()) if len(values_ms) else math.nan
    kept = mean_ms <= promise.limit_ms
    if len(values_ms) < 2:
        return JudgedPromise(promise, mean_ms, kept, False)
    half_ms = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * float(values_ms.std(ddof=1)) / math.sqrt(len(values_ms))
    certain = abs(promise.limit_ms - mean_ms) >= half_ms
    return JudgedPromise(promise, mean_ms, kept, certain)


def _values_ms(records: Sequence[Record], metric: str) -> tuple[Values, int]:
    """Of completed requests, sorted, and how many did not complete."""
    completed = [record for record in records if record.ok]
    found: dict[str, list[float | None]] = {
        "ttft": [record.ttft_ns for record in completed],
        "tpot": [record.tpot_ns for record in completed],
        "e2e": [record.e2e_ns for record in completed],
    }
    values_ms = np.sort(np.array([value for value in found[metric] if value is not None], dtype=np.float64) / 1e6)
    return values_ms, len(records) - len(completed)
