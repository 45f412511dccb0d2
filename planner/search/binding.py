"""Why a replica bears no more: the promise or cap that breaks first above its highest rate, and where its time goes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from planner.perf.roofline import Batch, Step, step
from planner.queueing import Metric
from planner.queueing.engine import SPREADS, EngineEstimate
from planner.search.designs import Designs
from planner.search.fleets import Pool
from planner.search.promises import (
    Estimate,
    EstimateAt,
    decode_at,
    mixed_at,
    of_decode,
    of_prefill,
    prefill_at,
    promises_of,
)
from planner.search.steps import Machines
from planner.search.traffic import Promise, Traffic

ABOVE = 1.03  # times the highest rate, where something breaks
CAUSES = {
    "weights_s": "weights",
    "experts_s": "experts",
    "attention_s": "attention and KV",
    "state_s": "recurrent state",
    "links_s": "links between devices",
    "overhead_s": "launches and scheduling",
}
Breaks = Literal["throughput", "max_num_seqs", "kv_cache", "ttft", "tpot", "e2e"]


@dataclass(frozen=True)
class Binding:
    """What breaks first; `class_name` is of a promise, empty for a cap."""

    what: Breaks
    class_name: str = ""

    @property
    def text(self) -> str:
        if self.what == "throughput":
            return "the engine is busy all the time"
        if self.what == "max_num_seqs":
            return "max_num_seqs is reached"
        if self.what == "kv_cache":
            return "the KV cache is full"
        return f"{self.what.upper()} of {self.class_name}"


def estimate_at(designs: Designs, row: int, traffic: Traffic, scv: float) -> EstimateAt:
    """The closed form of one design."""
    costs, rules = designs.costs.row(row), designs.rules(row)
    if designs.role == "mixed":
        return mixed_at(costs, rules, traffic, scv)
    if designs.role == "prefill":
        return prefill_at(costs, rules, traffic, scv)
    prompt = float(traffic.lengths.prompt_tokens.mean())
    return decode_at(
        costs, rules, traffic, scv, float(designs.transfer_s[row] + designs.transfer_token_s[row] * prompt)
    )


def binding(pool: Pool, traffic: Traffic) -> Binding:
    """What breaks first when a replica gets more than its highest rate."""
    rate = pool.replica_rps / float(pool.designs.ranks[pool.row]) * ABOVE
    at = estimate_at(pool.designs, pool.row, traffic, 1 + (traffic.arrival_scv - 1) / pool.replicas)
    return breaking(at, pool.designs.role, traffic, rate)


def breaking(at: EstimateAt, role: str, traffic: Traffic, rate_rps: float) -> Binding:
    """What is broken, most of all, at this rate of one engine."""
    part = {"prefill": of_prefill, "decode": of_decode}.get(role)
    whole = at(rate_rps, None)
    if float(np.max(whole.load)) >= 1:
        return Binding("throughput")
    if isinstance(whole, EngineEstimate) and not bool(np.all(whole.fits)):
        seqs = float(np.max((whole.batch + SPREADS * whole.batch_sd) / whole.seqs_cap))
        kv = float(np.max((whole.kv_tokens + SPREADS * whole.kv_tokens_sd) / whole.kv_cap_tokens))
        return Binding("max_num_seqs" if seqs >= kv else "kv_cache")
    worst = (0.0, Binding("throughput"))
    for one, (seen, promise) in zip(traffic.classes, promises_of(traffic, part), strict=True):
        for metric, excess in _misses(at(rate_rps, seen), promise).items():
            worst = max(worst, (excess, Binding(metric, one.name)), key=lambda pair: pair[0])
    return worst[1]


def _misses(estimate: Estimate, promise: Promise) -> dict[Metric, float]:
    """By metric, the share of misses over the share allowed."""
    found: dict[Metric, float] = {}
    allowed = 1 - promise.attainment
    for metric, limit_s in promise.limits.items():
        found[metric] = float(np.max(estimate.exceeds(metric, limit_s))) / allowed
    for goal in promise.goals:
        excess = float(np.max(estimate.exceeds(goal.metric, goal.limit_s))) / (1 - goal.share)
        found[goal.metric] = max(found.get(goal.metric, 0.0), excess)
    for metric in promise.means:
        found.setdefault(metric, 1.0)
    return found


def time_text(machines: Machines, pool: Pool, traffic: Traffic) -> str:
    """Where the time of one step goes, in words: the two largest causes."""
    designs, row = pool.designs, pool.row
    one = machines.take(np.array([designs.pair[row]], np.intp))
    if designs.role == "prefill":
        tokens = np.array([min(float(designs.budget[row]), float(traffic.lengths.prompts.mean_tokens))])
        none = np.zeros(1)
        prompts = traffic.lengths.prompts
        pairs = tokens * prompts.mean_square / 2 / prompts.mean_tokens
        batch = Batch(decoding=none, context=none, prefill=tokens, pairs=pairs, prompts=np.ones(1), others=tokens)
        subject = f"a prefill step of {float(tokens[0]):,.0f} tokens"
    else:
        running = _running(pool, traffic)
        each = np.array([max(1.0, running / float(one.work.pp[0]))])
        context, none = np.array([traffic.lengths.mean_context_tokens]), np.zeros(1)
        batch = Batch(decoding=each, context=context, prefill=none, pairs=none, prompts=none, others=each)
        subject = f"a decode step of {running:,.0f} sequences"
    return _causes_text(subject, step(one.work, one.chip, one.co, batch))


def _running(pool: Pool, traffic: Traffic) -> float:
    rate = traffic.busy_rate_rps / pool.replicas / float(pool.designs.ranks[pool.row])
    estimate = estimate_at(pool.designs, pool.row, traffic, 1.0)(rate, None)
    assert isinstance(estimate, EngineEstimate)
    batch = float(np.max(estimate.batch))
    return max(1.0, min(batch, float(pool.designs.seqs[pool.row])))


def _causes_text(subject: str, parts: Step) -> str:
    seconds = {field.name: float(getattr(parts, field.name)[0]) for field in fields(parts)}
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:2]
    named = ", ".join(f"{CAUSES[name]} {value / total:.0%}" for name, value in largest if value > 0)
    return f"{subject} takes {1e3 * total:.1f} ms: {named}"
