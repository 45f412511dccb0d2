"""What a run gave: times of each request, percentiles after a warm-up cut, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from planner.queueing.costs import Floats
from planner.queueing.goals import Metric
from planner.simulate.requests import Ints

WARM_UP_SHARE = 0.1
BATCHES = 16
MIN_PER_BATCH = 20


@dataclass(frozen=True, kw_only=True)
class EngineTotals:
    """Of one engine, over the whole run. `left_kv_blocks` are still held at its end: none, if all is well."""

    busy_s: float
    sequence_seconds: float  # running sequences x time
    preemptions: int
    peak_kv_blocks: int
    left_kv_blocks: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the half-width of its confidence interval; infinite when there were too few requests."""

    value: float
    half_width: float

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One element per request, in the order in which they were sent; seconds from the start of the run."""

    sent_s: Floats
    first_token_s: Floats
    finish_s: Floats
    output_tokens: Ints
    engines: tuple[EngineTotals, ...]

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.sent_s

    @property
    def e2e_s(self) -> Floats:
        return self.finish_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """(end - first token) / (tokens - 1); NaN for answers of one token."""
        gaps = self.output_tokens - 1
        return np.where(gaps > 0, (self.finish_s - self.first_token_s) / np.maximum(gaps, 1), np.nan)

    @property
    def preemptions(self) -> int:
        return sum(engine.preemptions for engine in self.engines)

    @property
    def output_tok_per_s(self) -> float:
        """Over the whole run, its start and its end included."""
        return float(self.output_tokens.sum() / self.finish_s.max())

    def values_s(self, metric: Metric, *, warm_up_share: float = WARM_UP_SHARE) -> Floats:
        """The metric of every request that was sent after the first `warm_up_share` of them."""
        values = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[metric]
        kept = values[int(len(values) * warm_up_share) :]
        return kept[~np.isnan(kept)]

    def percentile_s(self, metric: Metric, share: float, *, warm_up_share: float = WARM_UP_SHARE) -> float:
        """The percentile `share` (0.99 for P99) of the metric; NaN when no request has it."""
        values = self.values_s(metric, warm_up_share=warm_up_share)
        return float(np.quantile(values, share)) if len(values) else float("nan")

    def interval_s(
        self, metric: Metric, share: float, *, confidence: float = 0.95, warm_up_share: float = WARM_UP_SHARE
    ) -> Interval:
        """The percentile with its confidence interval, from the spread between batches of consecutive requests."""
        values = self.values_s(metric, warm_up_share=warm_up_share)
        return batch_means(values, lambda batch: np.quantile(batch, share), confidence=confidence)

    def met_share(self, metric: Metric, limit_s: float, *, confidence: float = 0.95) -> Interval:
        """Share of requests within the limit."""
        values = self.values_s(metric)
        return batch_means(values, lambda batch: np.mean(batch <= limit_s), confidence=confidence)


def batch_means(values: Floats, statistic: Callable[[Floats], np.floating], *, confidence: float) -> Interval:
    """`statistic` of all values; its error from `BATCHES` batches in order, which hides short-range correlation."""
    if not len(values):
        return Interval(value=float("nan"), half_width=float("inf"))
    value = float(statistic(values))
    if len(values) < BATCHES * MIN_PER_BATCH:
        return Interval(value=value, half_width=float("inf"))
    each = np.array([float(statistic(batch)) for batch in np.array_split(values, BATCHES)])
    factor = float(scipy.special.stdtrit(BATCHES - 1, (1 + confidence) / 2))
    return Interval(value=value, half_width=factor * float(each.std(ddof=1)) / BATCHES**0.5)
