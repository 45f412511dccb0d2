"""The queue that a truth server with `slots` and answers of one token is, and its latencies in closed form. Pure.

Arrivals are Poisson. Exponential service is M/M/c: the wait is exponential for the share that waits (Erlang C). Fixed
service is M/D/c, after Franx, "A simple solution for the M/D/c waiting time distribution" (2001): every term of his sum
is positive, where the textbook's alternating sum of M/D/1 loses all digits at high load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.truth.config import Law, TruthConfig

# States of M/D/c that are kept, per server and per unit of spare capacity: what is left out is below 1e-12.
_STATES_PER_SPARE = 20
_MAX_STATES = 2500
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Queue:
    """`servers` serve one request each, first come first served."""

    servers: int
    service_s: float
    law: Law

    @classmethod
    def of(cls, config: TruthConfig) -> Queue:
        """The queue that a truth server makes of requests for one token. It must have slots."""
        if config.slots is None:
            raise ValueError("a truth server without slots has no queue")
        return cls(config.slots, config.ttft_ms / 1e3, config.ttft_law)

    @property
    def saturation_rps(self) -> float:
        return self.servers / self.service_s

    def within(self, rate_rps: float, limit_s: float) -> float:
        """The share of requests whose wait and service together take at most `limit_s`, in the long run."""
        if limit_s < 0 or rate_rps >= self.saturation_rps:
            return 0.0
        if self.law is Law.EXPONENTIAL:
            return 1 - self._exponential_beyond(rate_rps, limit_s)
        return self._fixed_wait_within(rate_rps, limit_s - self.service_s)

    def capacity_rps(self, limit_s: float, attainment: float) -> float:
        """The highest rate at which the share `attainment` is answered within `limit_s`; 0 if there is none."""
        low, high = 0.0, self.saturation_rps
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.within(middle, limit_s) >= attainment else (low, middle)
        return low

    def _exponential_beyond(self, rate_rps: float, limit_s: float) -> float:
        served_rps = 1 / self.service_s
        waits = _erlang_c(self.servers, rate_rps * self.service_s)
        drained_rps = self.saturation_rps - rate_rps
        alone = math.exp(-served_rps * limit_s)
        difference = served_rps - drained_rps
        if abs(difference) < 1e-9 * served_rps:
            return (1 - waits) * alone + waits * (1 + served_rps * limit_s) * alone
        both = (served_rps * math.exp(-drained_rps * limit_s) - drained_rps * alone) / difference
        return (1 - waits) * alone + waits * both

    def _fixed_wait_within(self, rate_rps: float, wait_s: float) -> float:
        if wait_s < 0:
            return 0.0
        rounds = math.floor(wait_s / self.service_s) + 1
        mean = rate_rps * (rounds * self.service_s - wait_s)
        in_system = np.cumsum(_md_states(self.servers, rate_rps * self.service_s))
        terms = rounds * self.servers
        waiting_at_most = in_system[np.minimum(self.servers + np.arange(terms)[::-1], len(in_system) - 1)]
        return float(min(1.0, (waiting_at_most * _poisson(mean, terms)).sum()))


def _erlang_c(servers: int, busy: float) -> float:
    """The share that waits, when `busy` servers are busy on average."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = busy * blocked / (count + busy * blocked)
    return blocked / (1 - busy / servers * (1 - blocked))


def _md_states(servers: int, busy: float) -> NDArray[np.float64]:
    """The distribution of the number in an M/D/c system: after one service time all that were served are gone."""
    spare = 1 - busy / servers
    count = min(_MAX_STATES, servers + math.ceil(_STATES_PER_SPARE * servers / spare))
    arrived = _poisson(busy, count)
    after = np.zeros((count, count))  # [from, to]
    for state in range(count):
        left = max(0, state - servers)
        after[state, left:] = arrived[: count - left]
    balance = after.T - np.eye(count)
    balance[-1] = 1.0  # the states' shares sum to one
    shares = np.linalg.solve(balance, np.eye(count)[-1])
    return np.maximum(shares, 0.0)


def _poisson(mean: float, count: int) -> NDArray[np.float64]:
    """The first `count` probabilities."""
    if mean <= 0:
        return np.eye(1, count)[0]
    numbers = np.arange(count)
    logs = np.concatenate([[0.0], np.cumsum(np.log(numbers[1:]))])
    found: NDArray[np.float64] = np.exp(numbers * math.log(mean) - mean - logs)
    return found
