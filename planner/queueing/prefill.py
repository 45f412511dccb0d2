"""Prefill pools: k engines that compute prompts one after another, each request in one of them.

TTFT = wait + own prefill + overhead. The wait is zero or exponential with Allen-Cunneen's mean; the prefill is the
sample's, and mixing the two over the sample gives the percentiles. A mean prompt in place of the sample would put P99
too low by half where lengths vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from planner.queueing.costs import Bools, Floats, Number, StepCosts
from planner.queueing.goals import Metric
from planner.queueing.lengths import Lengths
from planner.queueing.waits import late_share, mean_wait_s, quantile_s
from planner.types import PlannerError


class Routing(StrEnum):
    """How requests reach the engines of a pool."""

    SHARED_QUEUE = "shared queue"  # an engine takes the next one when it has room
    RANDOM = "random"  # each engine has its own queue; the closed forms see round robin as this


@dataclass(frozen=True, kw_only=True)
class PrefillEstimate:
    """Arrays over configurations; times in seconds, infinite where the load is 1 or more."""

    load: Floats  # share of the engines' time
    waits: Floats  # share of requests that wait
    mean_wait_s: Floats
    own_s: Floats  # the request's own time: (configurations, classes)
    weights: Floats  # of the classes
    departures_scv: Floats  # burstiness of what leaves, and so reaches the decode pool

    @property
    def fits(self) -> Bools:
        """Whether the pool keeps up."""
        return np.asarray(self.load < 1)

    def exceeds(self, metric: Metric, limit_s: Number) -> Floats:
        """Share of requests whose TTFT is above `limit_s`. Raises PlannerError for another metric."""
        if metric != "ttft":
            raise PlannerError("goal", "metric", metric, "is not a prefill pool's affair", "put it to the decode pool")
        return self.ttft_exceeds(limit_s)

    def ttft_exceeds(self, limit_s: Number) -> Floats:
        """Share of requests whose TTFT is above `limit_s`."""
        return late_share(limit_s, own_s=self.own_s, weights=self.weights, waits=self.waits, wait_s=self.mean_wait_s)

    def ttft_s(self, share: float) -> Floats:
        """The quantile `share` of TTFT, 0.99 for P99."""
        return quantile_s(self.ttft_exceeds, share, self.mean_ttft_s)

    @property
    def mean_ttft_s(self) -> Floats:
        return self.mean_wait_s + self.own_s @ self.weights


def prefill_pool(
    costs: StepCosts,
    lengths: Lengths,
    *,
    engines: Number,
    rate_rps: Number,
    arrival_scv: Number = 1.0,
    routing: Routing = Routing.SHARED_QUEUE,
    max_num_batched_tokens: Number = 0.0,
    transfer_s: Number = 0.0,
) -> PrefillEstimate:
    """TTFT of prefill pools that serve `rate_rps` in all.

    `arrival_scv` is variance / mean² of the gaps between arrivals: 1 for Poisson. An engine takes several waiting
    prompts into one step up to `max_num_batched_tokens`, and they end together; at zero it takes one.
    `transfer_s` is added where the first token waits for the KV to reach a decode engine; Ferry sends it before, so
    its own pools leave it at zero.
    """
    prompts = lengths.prompts
    fixed_s = costs.step_s + costs.sequence_s
    service_s = fixed_s + prompts.mean_work_s(costs)
    service_scv = prompts.second_moment_s2(costs, fixed_s=fixed_s) / (service_s * service_s) - 1
    rate, count = np.asarray(rate_rps, dtype=float), np.asarray(engines, dtype=float)
    load = rate * service_s / count
    departures = _departures_scv(load, count, arrival_scv, service_scv)
    if routing is Routing.RANDOM:
        # Thinning moves any arrival process towards Poisson.
        arrival_scv = 1 + (np.asarray(arrival_scv) - 1) / count
        rate, count = rate / count, np.ones_like(count)
    waits, wait_s = mean_wait_s(count, rate, service_s, arrival_scv=arrival_scv, service_scv=service_scv)
    wait_s = wait_s + waits * _company_s(service_s, load, max_num_batched_tokens / prompts.mean_tokens)
    load, waits, wait_s, departures = np.broadcast_arrays(load, waits, wait_s, departures)
    known_s = np.asarray(fixed_s + costs.overhead_s + transfer_s, dtype=float)
    own_s = known_s[..., None] + prompts.work_s(costs)
    own_s = np.broadcast_to(own_s, (*load.shape, own_s.shape[-1]))
    return PrefillEstimate(
        load=load,
        waits=waits,
        mean_wait_s=wait_s,
        own_s=own_s,
        weights=prompts.weights,
        departures_scv=departures,
    )


def _departures_scv(load: Floats, engines: Floats, arrival_scv: Number, service_scv: Number) -> Floats:
    """Whitt's approximation (QNA): a busy pool puts its own service times in place of the arrivals' gaps."""
    busy = np.minimum(load, 1.0) ** 2
    return 1 + (1 - busy) * (np.asarray(arrival_scv) - 1) + busy * (service_scv - 1) / np.sqrt(engines)


def _company_s(service_s: Number, load: Floats, most: Number) -> Floats:
    """What prompts in the same step add to one that waited: half of those queued with it, at most the budget's."""
    queued = np.where(load < 1, load / np.where(load < 1, 1 - load, 1.0), np.inf)
    return service_s * np.minimum(queued, np.maximum(np.asarray(most) - 1, 0.0)) / 2
