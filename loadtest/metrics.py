"""The figures of a load test, from its records. Pure. `DEFINITIONS` is printed with them.

A request belongs to the window by its due time. Every request due in it counts: what failed, was cut, shed, timed out
or never finished misses the SLO, and stands as an infinite latency in the percentiles over all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from loadtest.types import Outcome, Record, Slo

Values = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# A server falls behind where latency grows with the due time by more than so many standard errors of that slope.
SURE_SLOPE = 3.0
CONFIDENCE = 0.95

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "ttft": "from the due time to the first event with a generated token (content, reasoning or tool call); of an "
        "answer without one, as in one piece, the end is held against the limit",
        "ttft_net": "the same, from the instant the request was handed to the socket",
        "tpot": "from the first to the last token event, per output token after those of the first event",
        "gap": "between two token events of a stream, pooled; a stream that broke adds one infinite gap to 'all'",
        "max_gap": "the longest gap of each stream",
        "e2e": "from the due time to the last token event; to the end of the answer where it is no stream",
        "completed": "percentiles over requests that completed",
        "all": "percentiles over all requests due in the window; one that did not complete is infinite",
        "attainment": "requests that met every limit of the SLO / all requests due in the window",
        "goodput": "requests that met every limit of the SLO, per second of the window",
        "completed/s, tokens/s": "per second of the window; where latency grows with the due time (a server that falls "
        "behind), of the time that the answers took to come out",
    }
)


@dataclass(frozen=True, slots=True)
class Distribution:
    """One metric in milliseconds; `all_ms` counts what did not complete as infinite."""

    count: int
    mean_ms: float
    max_ms: float
    completed_ms: Mapping[float, float]
    all_ms: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Attainment:
    """How many met the SLO, with the Wilson interval of that share."""

    due: int
    met: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.met / self.due if self.due else math.nan


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one set of requests."""

    window_s: float
    outcomes: Mapping[Outcome, int]
    flags: Mapping[str, int]
    details: Mapping[Outcome, str]
    """One example for each kind that failed."""
    distributions: Mapping[str, Distribution]
    attainment: Attainment | None
    goodput_rps: float | None
    due_rps: float
    completed_rps: float
    output_tokens_per_s: float
    prompt_tokens: float
    """Mean, as the server counted them; NaN if it did not."""
    output_tokens: float
    """Mean over completed requests."""

    @property
    def due(self) -> int:
        return sum(self.outcomes.values())


def summarise(
    records: Sequence[Record],
    slo: Slo,
    window_s: float,
    class_slos: Mapping[str, Slo] | None = None,
    *,
    open_loop: bool = False,
) -> Summary:
    """`window_s`: the seconds in which these records were due. `class_slos`: of classes that `slo` is not for.

    `open_loop`: they were due whatever became of those before, so a server can fall behind.
    """
    completed = [record for record in records if record.ok]
    own = class_slos or {}
    met = sum(meets(record, own.get(record.slo_class, slo)) for record in records)
    judged = any(own.get(name, slo) for name in {record.slo_class for record in records}) or bool(slo)
    per_s = 1 / window_s if window_s > 0 else math.nan
    out_per_s = per_s / stretch(completed) if open_loop else per_s
    examples: dict[Outcome, str] = {}
    for record in records:
        if not record.ok:
            examples.setdefault(record.outcome, record.detail)
    prompts = [record.prompt_tokens for record in completed if record.prompt_tokens is not None]
    tokens = [record.output_tokens for record in completed]
    return Summary(
        window_s=window_s,
        outcomes=Counter(record.outcome for record in records),
        flags=Counter(flag.value for record in records for flag in record.flags),
        details=examples,
        distributions=_distributions(records, completed),
        attainment=Attainment(len(records), met, *wilson(met, len(records))) if judged else None,
        goodput_rps=met * per_s if judged else None,
        due_rps=len(records) * per_s,
        completed_rps=len(completed) * out_per_s,
        output_tokens_per_s=sum(tokens) * out_per_s,
        prompt_tokens=float(np.mean(prompts)) if prompts else math.nan,
        output_tokens=float(np.mean(tokens)) if tokens else math.nan,
    )


def stretch(completed: Sequence[Record]) -> float:
    """How many times longer the answers took to come out than the requests to come in; 1 for a server that keeps up.

    A queue that grows lets its answers out at the server's own pace, long after the last request is due. Counted per
    second of sending they would seem to have come out as fast as they went in, at every rate. So it is one more than
    the slope of the latency over the due time, where that slope is beyond chance: answers of unequal length scatter.
    """
    due_s = np.array([record.due_ns for record in completed], dtype=np.float64) / 1e9
    took_s = np.array([record.end_ns - record.due_ns for record in completed], dtype=np.float64) / 1e9
    if len(due_s) < 3 or due_s.min() == due_s.max():
        return 1.0
    due_s -= due_s.mean()
    squares = float((due_s**2).sum())
    slope = float((due_s * took_s).sum()) / squares
    off_s = took_s - took_s.mean() - slope * due_s
    standard_error = math.sqrt(float((off_s**2).sum()) / (len(due_s) - 2) / squares)
    return 1.0 + slope if slope > SURE_SLOPE * standard_error else 1.0


def by_class(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each SLO class, in order of their names."""
    classes: dict[str, list[Record]] = {}
    for record in records:
        classes.setdefault(record.slo_class, []).append(record)
    return dict(sorted(classes.items()))


def in_window(records: Iterable[Record], start_ns: int, warmup_s: float) -> list[Record]:
    """The records that count: those due after the warm-up."""
    from_ns = start_ns + round(warmup_s * 1e9)
    return [record for record in records if record.due_ns >= from_ns]


def meets(record: Record, slo: Slo) -> bool:
    """True if it completed within every limit. A limit on what the answer does not have (one event: no TPOT) is met.

    An answer without a first token, as one that is no stream, showed its user nothing before its end: that is its TTFT.
    """
    if not record.ok:
        return False
    gaps_ns, ttft_ns = record.gaps_ns, record.ttft_ns
    measured = (
        (slo.ttft_ms, ttft_ns if ttft_ns is not None else record.end_ns - record.due_ns),
        (slo.tpot_ms, record.tpot_ns),
        (slo.e2e_ms, record.e2e_ns),
        (slo.max_gap_ms, int(gaps_ns.max()) if gaps_ns.size else None),
    )
    return all(limit_ms is None or value is None or value / 1e6 <= limit_ms for limit_ms, value in measured)


def wilson(met: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson score interval of a share; (0, 1) when nothing was seen.

    It holds for independent requests. Those of one run are not quite, so the true interval is wider.
    """
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2n = met / total, z * z / total
    middle = share + z2n / 2
    half = z * math.sqrt(share * (1 - share) / total + z2n / (4 * total))
    # At the ends the bound is exact: rounding must not push it beyond.
    low = 0.0 if met == 0 else (middle - half) / (1 + z2n)
    high = 1.0 if met == total else (middle + half) / (1 + z2n)
    return low, high


def quantile(ordered: Values, q: float, infinite: int = 0) -> float:
    """Linear between the two nearest of the sorted values with `infinite` more behind them; NaN if there is none."""
    total = len(ordered) + infinite
    if not total:
        return math.nan
    place = q * (total - 1)
    below = math.floor(place)
    above = min(below + 1, total - 1) if place > below else below
    if above >= len(ordered):
        return math.inf
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def _distributions(records: Sequence[Record], completed: Sequence[Record]) -> dict[str, Distribution]:
    failed = len(records) - len(completed)
    metrics: dict[str, list[float | None]] = {
        "ttft": [record.ttft_ns for record in completed],
        "ttft_net": [record.ttft_net_ns for record in completed],
        "tpot": [record.tpot_ns for record in completed],
        "max_gap": [int(record.gaps_ns.max()) if record.gaps_ns.size else None for record in completed],
        "e2e": [record.e2e_ns for record in completed],
    }
    found = {name: _distribution(values, failed) for name, values in metrics.items()}
    gaps_ms = _pooled_ms(completed)
    broken = [record for record in records if not record.ok and record.first_ns]
    found["gap"] = _describe(gaps_ms, np.sort(np.concatenate([gaps_ms, _pooled_ms(broken)])), len(broken))
    return {name: found[name] for name in ("ttft", "ttft_net", "tpot", "gap", "max_gap", "e2e") if found[name].count}


def _pooled_ms(records: Sequence[Record]) -> Values:
    gaps = [record.gaps_ns for record in records]
    return np.sort(np.concatenate(gaps) / 1e6) if gaps else np.empty(0)


def _distribution(values_ns: Iterable[float | None], failed: int) -> Distribution:
    values_ms = np.sort(np.array([value for value in values_ns if value is not None], dtype=np.float64) / 1e6)
    return _describe(values_ms, values_ms, failed)


def _describe(completed_ms: Values, all_ms: Values, infinite: int) -> Distribution:
    return Distribution(
        count=len(completed_ms),
        mean_ms=float(completed_ms.mean()) if len(completed_ms) else math.nan,
        max_ms=float(completed_ms[-1]) if len(completed_ms) else math.nan,
        completed_ms={q: quantile(completed_ms, q) for q in QUANTILES},
        all_ms={q: quantile(all_ms, q, infinite) for q in QUANTILES},
    )
