"""Percentiles of TTFT and TPOT around the means of an equilibrium.

TTFT: requests of the opening burst wait evenly up to twice their mean; the others wait for steps and prompts ahead
(an exponential tail) and for a place (all about as long). TPOT: the count of prompts that interrupt one request and
the size of its batch vary from request to request, by as much as independent arrivals would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.perf.arrays import Array, Table
from planner.perf.serving import Load, Served

QUANTILES = (0.5, 0.9, 0.99)
POINTS = 200  # per component of the mixture
WAY_TAIL = 0.25  # share of the constant part that varies, exponentially
QUEUE_HALF_WIDTH = 0.3  # of a queue's mean: what clients wait differs by how full it was
NORMAL = {0.5: 0.0, 0.9: 1.2816, 0.99: 2.3263}
CLOSED_SHARE = 0.5  # of the variance that independent arrivals would bring: clients take turns
STEP_SCATTER = 0.015  # of TPOT, from the machine itself


@dataclass(frozen=True, kw_only=True)
class Spread(Table):
    """Seconds."""

    mean: Array
    p50: Array
    p90: Array
    p99: Array


def ttft_spread(served: Served, load: Load) -> Spread:
    """Of all requests of a run, its opening burst included."""
    closed = np.isfinite(load.concurrency)
    share = np.where(closed, 1 / load.prompts_per_client, 0.0)
    even = (np.arange(POINTS) + 0.5) / POINTS
    tail = -np.log1p(-even)
    base_s = served.way_s + served.start_s
    varied_s = np.clip(served.start_s - served.mixed_step_s, 0.0, None) + WAY_TAIL * served.way_s
    steady = (base_s - varied_s)[:, None] + varied_s[:, None] * tail
    # After the burst those that found a place do not queue, all others do, each about as long.
    clients = np.where(closed, load.concurrency, served.cap)
    first = share * np.minimum(1.0, served.cap / clients)
    queued = np.where(share < 1, served.queue_s / np.maximum(1e-9, 1 - first), served.queue_s)
    waits = queued[:, None] * (1 + QUEUE_HALF_WIDTH * (2 * even - 1))
    later = steady + waits
    opening = base_s[:, None] + 2 * served.burst_s[:, None] * even
    values = np.concatenate([later, opening], axis=1)
    weights = np.concatenate(
        [np.broadcast_to((1 - share)[:, None], later.shape), np.broadcast_to(share[:, None], opening.shape)], axis=1
    )
    p50, p90, p99 = (_quantile(values, weights, q) for q in QUANTILES)
    return Spread(mean=served.ttft_s, p50=p50, p90=p90, p99=p99)


def tpot_spread(served: Served, load: Load) -> Spread:
    """Of all requests of a run."""
    tokens = np.maximum(1.0, load.osl - 1)
    closed = np.isfinite(load.concurrency)
    seen = served.busy / np.maximum(served.prompt_s, 1e-9) * served.tpot_s * tokens  # prompts during one answer
    prompts_var = seen * (served.prompt_s / tokens) ** 2 * np.where(closed, CLOSED_SHARE, 1.0)
    share = np.clip(1 - served.decode_step_s / np.maximum(served.tpot_s, 1e-9), 0.0, 0.98)
    swing = np.where(closed, 0.0, 1 / np.sqrt(np.maximum(1.0, served.running) * (1 - share)))
    sigma = np.sqrt(prompts_var + (served.tpot_s * swing * share) ** 2 + (STEP_SCATTER * served.tpot_s) ** 2)
    p50, p90, p99 = (served.tpot_s + NORMAL[q] * sigma for q in QUANTILES)
    return Spread(mean=served.tpot_s, p50=p50, p90=p90, p99=p99)


def _quantile(values: Array, weights: Array, q: float) -> Array:
    order = np.argsort(values, axis=1)
    sorted_values = np.take_along_axis(values, order, axis=1)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    first = np.argmax(reached >= q * reached[:, -1:], axis=1)
    return np.asarray(np.take_along_axis(sorted_values, first[:, None], axis=1)[:, 0])
