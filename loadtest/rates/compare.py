"""Two saved runs: is one of them better, or is it chance? Bootstrap intervals of the differences. Pure.

Requests of one run are not independent (behind a slow one the next wait too), so blocks of neighbours are drawn, not
single requests. Where both runs sent the same requests (equal numbers and due times), the same blocks are drawn from
both: what they share cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics import meets
from loadtest.types import Record, Slo

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Statistic = Callable[[Floats], Floats]
"""One value for each row."""

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
    paired = _alike(first, second)
    rng = np.random.default_rng(seed)
    draws_a = _block_draws(len(first), rng)
    draws_b = draws_a if paired else _block_draws(len(second), rng)
    found = []
    for name, values_of in _metrics():
        columns = values_of(first), values_of(second)
        for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            found.append(
                _difference(f"{name} {label}", columns, (draws_a, draws_b), _quantile(share), True, confidence)
            )
    shares: list[tuple[str, Callable[[Record], bool]]] = [("completed", lambda record: record.ok)]
    if slo is not None and slo:
        shares.append(("within the SLO", lambda record: meets(record, slo)))
    for name, holds in shares:
        columns = _flags(first, holds), _flags(second, holds)
        found.append(_difference(name, columns, (draws_a, draws_b), _mean, False, confidence))
    return Compared(paired, (len(first), len(second)), tuple(one for one in found if not math.isnan(one.a - one.b)))


def _metrics() -> tuple[tuple[str, Callable[[Sequence[Record]], Floats]], ...]:
    return (
        ("TTFT", lambda records: _column([record.ttft_ns if record.ok else None for record in records])),
        ("TPOT", lambda records: _column([record.tpot_ns if record.ok else None for record in records])),
        ("E2E", lambda records: _column([record.e2e_ns if record.ok else None for record in records])),
    )


def _column(values_ns: Sequence[int | float | None]) -> Floats:
    """Milliseconds; NaN where there is no value."""
    return np.array([math.nan if value is None else value / 1e6 for value in values_ns])


def _flags(records: Sequence[Record], holds: Callable[[Record], bool]) -> Floats:
    return np.array([float(holds(record)) for record in records])


def _quantile(share: float) -> Statistic:
    def of_rows(rows: Floats) -> Floats:
        """Linear between neighbours, over what is not NaN: sorting puts that first."""
        ordered = np.sort(rows, axis=1)
        last = (~np.isnan(ordered)).sum(axis=1) - 1
        place = np.maximum(last, 0) * share
        below = place.astype(np.intp)
        above = np.minimum(below + 1, np.maximum(last, 0))
        at = np.arange(len(rows))
        found: Floats = ordered[at, below] + (place - below) * (ordered[at, above] - ordered[at, below])
        return found

    return of_rows


def _mean(rows: Floats) -> Floats:
    found: Floats = rows.mean(axis=1)
    return found


def _difference(
    metric: str,
    columns: tuple[Floats, Floats],
    draws: tuple[Places, Places],
    statistic: Statistic,
    lower_is_better: bool,
    confidence: float,
) -> Difference:
    a, b = (float(statistic(column[None, :])[0]) if len(column) else math.nan for column in columns)
    if math.isnan(a - b):
        return Difference(metric, a, b, math.nan, math.nan, lower_is_better)
    drawn_a, drawn_b = (statistic(column[places]) for column, places in zip(columns, draws, strict=True))
    each = drawn_b - drawn_a
    low, high = np.quantile(each[~np.isnan(each)], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(metric, a, b, float(low), float(high), lower_is_better)


def _block_draws(count: int, rng: np.random.Generator) -> Places:
    """RESAMPLES rows of `count` places: blocks of neighbours with random begins, wrapping around."""
    if not count:
        return np.zeros((RESAMPLES, 0), np.intp)
    length = max(1, count // BLOCKS)
    begins = rng.integers(0, count, (RESAMPLES, -(-count // length)))
    places = (begins[:, :, None] + np.arange(length)) % count
    drawn: Places = places.reshape(RESAMPLES, -1)[:, :count]
    return drawn


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
