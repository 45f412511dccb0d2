"""Waits in textbook queues, over arrays: Erlang C, Allen-Cunneen for G/G/k, and quantiles of a mixed wait."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.queueing.costs import Floats, Number

DOUBLINGS, HALVINGS = 60, 30


def erlang_c(servers: Number, offered: Number) -> Floats:
    """Share of customers that wait in M/M/k, where `offered` is rate x mean service; 1 at or above full load.

    `servers` are whole numbers.
    """
    k, load = np.broadcast_arrays(np.asarray(servers, dtype=float), np.asarray(offered, dtype=float))
    blocked = np.ones(k.shape)  # Erlang B, by its recursion in k
    for n in range(1, int(k.max(initial=0.0)) + 1):
        blocked = np.where(n <= k, load * blocked / (n + load * blocked), blocked)
    rho = np.where(load < k, load / k, 0.0)
    return np.where(load < k, blocked / (1 - rho * (1 - blocked)), 1.0)


def mean_wait_s(
    servers: Number, rate_rps: Number, service_s: Number, *, arrival_scv: Number, service_scv: Number
) -> tuple[Floats, Floats]:
    """(share that waits, mean wait of all) in G/G/k by Allen-Cunneen; the wait is infinite at or above full load.

    Exact for M/M/k and, at k = 1, for M/G/1. `_scv` is variance / mean².
    """
    offered = np.asarray(rate_rps, dtype=float) * service_s
    waits = erlang_c(servers, offered)
    spare = servers - offered
    spread = (np.asarray(arrival_scv, dtype=float) + service_scv) / 2
    rest = np.where(spare > 0, spare, 1.0)
    return waits, np.where(spare > 0, waits * service_s / rest * spread, np.inf)


def late_share(limit_s: Number, *, own_s: Floats, weights: Floats, waits: Floats, wait_s: Floats) -> Floats:
    """P(W + own > limit): W is zero but for a share `waits`, and there exponential; `wait_s` is the mean of all.

    `own_s` has one more dimension than the rest: the classes that `weights` weighs. An infinite wait makes all late.
    """
    spare_s = np.asarray(limit_s, dtype=float)[..., None] - own_s
    finite = np.isfinite(wait_s) & (wait_s > 0)
    decay = np.where(finite, waits / np.where(finite, wait_s, 1.0), np.where(np.isfinite(wait_s), np.inf, 0.0))
    share = np.where(np.isfinite(wait_s), waits, 1.0)
    with np.errstate(invalid="ignore"):
        tail = share[..., None] * np.exp(-np.maximum(spare_s, 1e-300) * decay[..., None])
    late: Floats = np.where(spare_s < 0, 1.0, tail) @ weights
    return late


def quantile_s(exceeds: Callable[[Floats], Floats], share: float, start_s: Floats) -> Floats:
    """The time that a share 1 - `share` exceeds; found by doubling from `start_s`, then halving. Infinity stays."""
    finite = np.isfinite(start_s)
    high = np.where(finite, start_s, 1.0)
    for _ in range(DOUBLINGS):
        short = finite & (exceeds(high) > 1 - share)
        if not short.any():
            break
        high = np.where(short, 2 * high, high)
    low = np.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = exceeds(middle) > 1 - share
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(finite, high, np.inf)
