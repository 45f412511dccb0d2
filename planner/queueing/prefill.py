"""Prefill pools: k engines that compute prompts, each request in one of them.

TTFT = wait + own prefill + overhead. The wait is zero or exponential; the prefill is the sample's, and mixing the two
over the sample gives the percentiles. A mean prompt in place of the sample would put P99 too low by half where lengths
vary.

An engine takes all that waits into one step, as far as the token budget goes, and they end together: with its own
queue it is a gated server, `_gated`. Where a step holds one prompt only, that is M/G/1. Engines that share a queue are
G/G/k by Allen-Cunneen, and a part of those who waited end with others: a rule of thumb, at worst some 25% off the
simulator up to load 0.7. Where a step's fixed part is most of a prompt's time, percentiles of a shared queue may even
dip a little as the rate rises; those of own queues never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from planner.queueing.costs import Bools, EngineRules, Floats, Number, StepCosts
from planner.queueing.goals import Metric
from planner.queueing.lengths import Lengths
from planner.queueing.waits import late_share, mean_wait_s, quantile_s
from planner.types import PlannerError

HALVINGS = 25
COMPANY_SHARE = 0.4
"""Of the prompts queued with it, what one that waited on a shared queue has in its step. Fitted to the simulator."""


class Routing(StrEnum):
    """How requests reach the engines of a pool. Sending them to the least loaded comes close to a shared queue."""

    SHARED_QUEUE = "shared queue"  # an engine takes the next ones when it has room
    RANDOM = "random"  # each engine has its own queue; round robin is seen as this


@dataclass(frozen=True, kw_only=True)
class PrefillEstimate:
    """Arrays over configurations; times in seconds, infinite where the load is 1 or more."""

    load: Floats  # share of the engines' time, were their steps as full as they get
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
        mean: Floats = self.mean_wait_s + self.own_s @ self.weights
        return mean


def prefill_pool(
    costs: StepCosts,
    rules: EngineRules,
    lengths: Lengths,
    *,
    engines: Number,
    rate_rps: Number,
    arrival_scv: Number = 1.0,
    routing: Routing = Routing.SHARED_QUEUE,
    transfer_s: Number = 0.0,
    seen: Lengths | None = None,
) -> PrefillEstimate:
    """TTFT of prefill pools that serve `rate_rps` in all.

    `arrival_scv` is variance / mean² of the gaps between arrivals: 1 for Poisson. `transfer_s` is added where the
    first token waits for the KV to reach a decode engine; Ferry sends it before, so its own pools leave it at zero.
    `seen` are the requests whose percentiles are asked for, where they are a class among others.
    """
    prompts, own = lengths.prompts, (seen or lengths).prompts
    budget = np.asarray(rules.max_num_batched_tokens, dtype=float)
    chunks = np.ceil(prompts.tokens / budget[..., None])
    steps_s = np.asarray(costs.step_s * (chunks @ prompts.weights), dtype=float)
    one = _Prompt(
        steps_s=steps_s,
        work_s=np.asarray(costs.sequence_s + prompts.mean_work_s(costs), dtype=float),
        work_square_s2=np.asarray(prompts.second_moment_s2(costs, fixed_s=costs.sequence_s), dtype=float),
        most=np.minimum(budget / prompts.mean_tokens, rules.max_num_seqs),
    )
    rate, count = np.asarray(rate_rps, dtype=float), np.asarray(engines, dtype=float)
    scv = np.asarray(arrival_scv, dtype=float)
    if routing is Routing.RANDOM:
        # Thinning moves any arrival process towards Poisson.
        load, waits, wait_s = _own_queue(one, rate / count, 1 + (scv - 1) / count)
    else:
        load, waits, wait_s = _shared_queue(one, rate, count, scv)
    departures = _departures_scv(rate * one.service_s / count, count, scv, one.service_scv)
    load, waits, wait_s, departures = np.broadcast_arrays(load, waits, wait_s, departures)
    known_s = np.asarray(costs.sequence_s + costs.overhead_s + transfer_s, dtype=float)
    own_chunks = np.ceil(own.tokens / budget[..., None])
    own_s = known_s[..., None] + own_chunks * np.asarray(costs.step_s)[..., None] + own.work_s(costs)
    return PrefillEstimate(
        load=load,
        waits=waits,
        mean_wait_s=wait_s,
        own_s=np.broadcast_to(own_s, (*load.shape, own_s.shape[-1])),
        weights=own.weights,
        departures_scv=departures,
    )


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """Means of one prompt."""

    steps_s: Floats  # the fixed part of the steps that it needs by itself
    work_s: Floats
    work_square_s2: Floats  # E[work²]
    most: Floats  # prompts in one step

    @property
    def service_s(self) -> Floats:
        return self.steps_s + self.work_s

    @property
    def service_scv(self) -> Floats:
        variance: Floats = self.work_square_s2 - self.work_s**2
        return variance / self.service_s**2


def _shared_queue(one: _Prompt, rate: Floats, engines: Floats, scv: Floats) -> tuple[Floats, Floats, Floats]:
    """(load, share that waits, mean wait) of k engines; one engine is its own queue.

    Twice: who waited shares the fixed part of its step with its company, which relieves the engines.
    """
    waits, _ = mean_wait_s(engines, rate, one.service_s, arrival_scv=scv, service_scv=one.service_scv)
    company = _company(one, rate * one.service_s / engines)
    service_s = one.work_s + one.steps_s * (1 - waits + waits / (1 + company))
    waits, wait_s = mean_wait_s(engines, rate, service_s, arrival_scv=scv, service_scv=one.service_scv)
    wait_s = wait_s + waits * _company(one, rate * service_s / engines) * service_s
    load = rate * (one.work_s + one.steps_s / (1 + _company(one, np.ones_like(wait_s)))) / engines
    alone = _own_queue(one, rate, scv)
    load, waits, wait_s = (
        np.where(engines > 1, many, single) for many, single in zip((load, waits, wait_s), alone, strict=True)
    )
    return load, waits, wait_s


def _company(one: _Prompt, load: Floats) -> Floats:
    """Other prompts in the step of one that waited."""
    queued = np.where(load < 1, load / np.where(load < 1, 1 - load, 1.0), np.inf)
    return COMPANY_SHARE * np.minimum(queued, np.maximum(one.most - 1, 0.0))


def _own_queue(one: _Prompt, rate: Floats, scv: Floats) -> tuple[Floats, Floats, Floats]:
    """(load, share that waits, mean wait) of one engine: gated where a step holds several prompts, else M/G/1."""
    together = np.clip(one.most - 1, 0.0, 1.0)
    waits, wait_s = mean_wait_s(1.0, rate, one.service_s, arrival_scv=scv, service_scv=one.service_scv)
    load = rate * (one.work_s + one.steps_s / np.maximum(one.most, 1.0))
    gated_waits, gated_s = _gated(one, np.where(load < 1, rate, 0.0), scv)
    stable = (load < 1) & ((together >= 1) | np.isfinite(wait_s))
    finite_s = np.where(np.isfinite(wait_s), wait_s, 0.0)
    mixed_s = together * gated_s + (1 - together) * finite_s
    return (
        np.where(stable, load, np.maximum(load, 1.0)),
        np.where(stable, together * gated_waits + (1 - together) * waits, 1.0),
        np.where(stable, mixed_s, np.inf),
    )


def _gated(one: _Prompt, rate: Floats, scv: Floats) -> tuple[Floats, Floats]:
    """(share that waits, mean wait) of an engine whose step takes all that came during the one before.

    Steps per second `ν`: some start idle engines, the others follow a step of mean `D = busy / ν` in which someone
    came, so `ν exp(-λ D) = λ (1 - busy)`; and busy = λ work + ν step. A step's second moment follows from the chain
    `D' = step + work of those who came in D`. Who meets a step waits for the rest of it, and for all that came in it.
    """
    work = rate * one.work_s
    low, high = np.zeros_like(work * one.steps_s), rate + 0 * one.steps_s
    for _ in range(HALVINGS):
        steps = (low + high) / 2
        busy = np.minimum(work + steps * one.steps_s, 1.0)
        few = steps * np.exp(-rate * busy / np.maximum(steps, 1e-12)) < rate * (1 - busy)
        low, high = np.where(few, steps, low), np.where(few, high, steps)
    busy = np.minimum(work + high * one.steps_s, 1.0)
    mean_s = np.where(high > 0, busy / np.maximum(high, 1e-12), one.service_s)
    prompts = np.where(high > 0, rate / np.maximum(high, 1e-12), 1.0)
    square_s2 = one.work_square_s2 + (scv - 1) * one.work_s**2 + 2 * one.steps_s * one.work_s
    spare = np.maximum(1 - np.minimum(work, 1.0) ** 2, 1e-12)
    met_s = (one.steps_s**2 + square_s2 * prompts) / spare / mean_s
    return busy, busy * met_s * (0.5 + work)


def _departures_scv(load: Floats, engines: Floats, arrival_scv: Floats, service_scv: Floats) -> Floats:
    """Whitt's approximation (QNA): a busy pool puts its own service times in place of the arrivals' gaps."""
    busy = np.minimum(load, 1.0) ** 2
    scv: Floats = 1 + (1 - busy) * (arrival_scv - 1) + busy * (service_scv - 1) / np.sqrt(engines)
    return scv
