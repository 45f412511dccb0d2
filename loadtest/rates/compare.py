"""Two saved runs: is one of them better, or is it chance? Bootstrap intervals of the differences. Pure.

Requests of one run are not independent (behind a slow one the next wait too), so blocks of neighbours are drawn, not
single requests. Where both runs sent the same requests (equal numbers and due times), the same blocks are drawn from
both: what they share cancels out.

A drawing is kept as how often it holds each request, from which all figures follow without another sort: one drawing
is in memory at a time, however long the runs are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics import meets
from loadtest.types import Record, Slo

Floats = NDArray[np.float64]
Times = NDArray[np.intp]
"""How often each request counts."""

LATENCIES = ("TTFT", "TPOT", "E2E")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_SHARES = np.array([*QUANTILES.values()])
RESAMPLES = 2_000
BLOCKS = 40
# Due times of one seed differ by rounding only.
SAME_DUE_NS = 1_000_000


class Change(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no difference shown"


@dataclass(frozen=True, slots=True)
class Difference:
    """B against A. `low` and `high` bound B - A; for latencies in ms, for shares as a fraction."""

    metric: str
    a: float
    b: float
    low: float
    high: float
    lower_is_better: bool

    @property
    def change(self) -> Change:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low <= 0 <= self.high:
            return Change.UNCLEAR
        return Change.BETTER if (self.high < 0) == self.lower_is_better else Change.WORSE


@dataclass(frozen=True, slots=True)
class Compared:
    paired: bool
    requests: tuple[int, int]
    differences: tuple[Difference, ...]

    @property
    def worse(self) -> bool:
        return any(one.change is Change.WORSE for one in self.differences)


def compare(
    a: Sequence[Record], b: Sequence[Record], slo: Slo | None = None, *, confidence: float = 0.95, seed: int = 0
) -> Compared:
    """Percentiles of TTFT, TPOT and E2E over completed requests, the completed share, and attainment where `slo` is."""
    first, second = _ordered(a), _ordered(b)
    requests = len(first), len(second)
    if not first or not second:
        return Compared(False, requests, ())
    paired = _alike(first, second)
    rng = np.random.default_rng(seed)
    blocks_a = Blocks.drawn(len(first), rng)
    blocks_b = blocks_a if paired else Blocks.drawn(len(second), rng)
    of_a, of_b = _Figures.of(first, slo), _Figures.of(second, slo)
    apart = np.empty((RESAMPLES, len(of_a.names)))
    for row in range(RESAMPLES):
        times_a = blocks_a.times(row)
        apart[row] = of_b.values(times_a if paired else blocks_b.times(row)) - of_a.values(times_a)
    seen_a, seen_b = of_a.values(np.ones(len(first), np.intp)), of_b.values(np.ones(len(second), np.intp))
    found = []
    for place in np.flatnonzero(~np.isnan(seen_b - seen_a)):
        each = apart[:, place]
        low, high = np.quantile(each[~np.isnan(each)], [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
        name, a_, b_ = of_a.names[place], float(seen_a[place]), float(seen_b[place])
        found.append(Difference(name, a_, b_, low, high, lower_is_better=name.startswith(LATENCIES)))
    return Compared(paired, requests, tuple(found))


@dataclass(frozen=True, slots=True)
class Blocks:
    """RESAMPLES drawings of as many requests as there are: blocks of neighbours with random begins, wrapping around."""

    count: int
    length: int
    begins: NDArray[np.intp]
    """By drawing and block."""

    @staticmethod
    def drawn(count: int, rng: np.random.Generator) -> Blocks:
        length = max(1, count // BLOCKS)
        return Blocks(count, length, rng.integers(0, count, (RESAMPLES, -(-count // length))))

    def times(self, drawing: int) -> Times:
        places = (self.begins[drawing][:, None] + np.arange(self.length)) % self.count
        return np.bincount(places.ravel()[: self.count], minlength=self.count)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One latency of those requests that have it, the quickest first."""

    order: NDArray[np.intp]
    """Places of the requests."""
    values_ms: Floats

    @staticmethod
    def of(values_ns: Sequence[float | None]) -> Ranked:
        values_ms = np.array([math.nan if value is None else value / 1e6 for value in values_ns])
        order = np.argsort(values_ms)[: np.count_nonzero(~np.isnan(values_ms))]  # NaN comes last
        return Ranked(order, values_ms[order])

    def quantiles(self, times: Times) -> Floats:
        """Linear between neighbours; NaN if nothing counts."""
        up_to = np.cumsum(times[self.order])
        last = up_to[-1] - 1 if len(up_to) else -1
        if last < 0:
            return np.full(len(_SHARES), math.nan)
        place = last * _SHARES
        below = place.astype(np.intp)
        low_ms, high_ms = (
            self.values_ms[np.searchsorted(up_to, rank, side="right")] for rank in (below, np.minimum(below + 1, last))
        )
        found: Floats = low_ms + (place - below) * (high_ms - low_ms)
        return found


@dataclass(frozen=True, slots=True)
class _Figures:
    """All that is compared of one run."""

    names: tuple[str, ...]
    latencies: tuple[Ranked, ...]
    flags: Floats
    """By share and request: 1 or 0."""

    @staticmethod
    def of(records: Sequence[Record], slo: Slo | None) -> _Figures:
        latencies = (
            Ranked.of([record.ttft_ns if record.ok else None for record in records]),
            Ranked.of([record.tpot_ns if record.ok else None for record in records]),
            Ranked.of([record.e2e_ns if record.ok else None for record in records]),
        )
        shares = {"completed": [record.ok for record in records]}
        if slo:
            shares["within the SLO"] = [meets(record, slo) for record in records]
        names = *(f"{name} {label}" for name in LATENCIES for label in QUANTILES), *shares
        return _Figures(names, latencies, np.array([*shares.values()], dtype=np.float64))

    def values(self, times: Times) -> Floats:
        """One for each name, if each request counts so many times."""
        return np.concatenate(
            [*(latency.quantiles(times) for latency in self.latencies), self.flags @ times / times.sum()]
        )


def _ordered(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.number)


def _alike(a: Sequence[Record], b: Sequence[Record]) -> bool:
    """Whether both sent the same list of requests, at the same times after their first one."""
    if len(a) != len(b) or not a:
        return False
    return all(
        one.number == other.number and abs((one.due_ns - a[0].due_ns) - (other.due_ns - b[0].due_ns)) <= SAME_DUE_NS
        for one, other in zip(a, b, strict=True)
    )
