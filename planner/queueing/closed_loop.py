"""A constant number of users on one mixed engine, each of whom sends again when answered: steady means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.queueing.costs import Bools, EngineRules, Floats, Number, StepCosts
from planner.queueing.lengths import Lengths

ROUNDS = 30
MOST_USED = 0.95
"""Of the token budget. Beyond it the places are full, and their queue is reckoned otherwise."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Arrays over configurations; seconds, means over requests."""

    rate_rps: Floats
    tpot_s: Floats
    batch: Floats
    ttft_s: Floats
    burst_ttft_s: Floats  # of the first requests, which all come at once
    queues: Bools  # whether users wait for a place

    def mean_ttft_s(self, *, requests_per_user: float) -> Floats:
        """Mean TTFT of a measurement that begins with the burst, as most load generators do."""
        first = 1 / requests_per_user
        return first * np.maximum(self.burst_ttft_s, self.ttft_s) + (1 - first) * self.ttft_s


def closed_loop(costs: StepCosts, rules: EngineRules, lengths: Lengths, *, concurrency: Number) -> ClosedLoop:
    """`concurrency` users of one engine.

    With `x` new requests in a mean step, `n` decode steps each and prefill work `w`, a request meets steps of
    `T = step_s + token_s + (token_s n + w) x (1 - 1 / users)`: it meets the other users only. By Little's law
    `users T / x = TTFT + n T`. Places are limited by max_num_seqs, the KV cache and the token budget; users without
    one wait, and their wait is what Little's law leaves. A request is sent when a step ends, so no part of a step
    is lost; with async scheduling the step that then starts is settled already.
    """
    users = np.asarray(concurrency, dtype=float)
    steps, tokens = lengths.mean_decode_steps, lengths.prompts.mean_tokens
    budget = np.asarray(rules.max_num_batched_tokens, dtype=float)
    token_s = np.asarray(costs.sequence_s + costs.kv_token_s * lengths.mean_context_tokens, dtype=float)
    work_s = np.asarray(lengths.prompts.mean_work_s(costs) + costs.sequence_s, dtype=float)
    block_waste = np.asarray(rules.block_size_tokens) / 2
    places = np.minimum(rules.max_num_seqs, np.asarray(rules.kv_tokens) / (lengths.mean_context_tokens + block_waste))
    most = np.minimum(places / (steps + 1), budget / (tokens + steps))
    others = 1 - 1 / users
    joined = np.zeros(np.broadcast_shapes(users.shape, work_s.shape, most.shape, np.shape(costs.step_s)))
    for _ in range(ROUNDS):
        step_s = costs.step_s + token_s + (token_s * steps + work_s) * joined * others
        ttft_s = (1 + rules.lag_steps) * step_s + work_s + costs.overhead_s
        ttft_s = ttft_s + _behind_prompts_s(joined * others, steps, budget, lengths, work_s)
        joined = (joined + np.minimum(users * step_s / (ttft_s + steps * step_s), most)) / 2
    step_s = costs.step_s + token_s + (token_s * steps + work_s) * joined * others
    rate = joined / step_s
    burst = np.minimum(users, places)
    burst_steps = burst * tokens / budget
    # In order of the queue, and all prompts of a step end with it.
    burst_s = (work_s * (burst + 1) + np.minimum(burst - 1, budget / tokens) * work_s) / 2
    return ClosedLoop(
        rate_rps=rate,
        tpot_s=step_s,
        batch=joined * steps,
        ttft_s=users / rate - steps * step_s,
        burst_ttft_s=costs.overhead_s + burst_s + np.asarray(costs.step_s) * (burst_steps + 1) / 2,
        queues=joined >= most * 0.999,
    )


def _behind_prompts_s(joined: Floats, steps: float, budget: Floats, lengths: Lengths, work_s: Floats) -> Floats:
    """Wait for prompts ahead that fill the token budget of several steps: M/G/1 in tokens."""
    tokens = lengths.prompts.mean_tokens
    room = np.maximum(budget - joined * steps, 1.0)
    used = np.minimum(joined * tokens / room, MOST_USED)
    ahead = lengths.prompts.second_moments[0] / (2 * tokens) * used / (1 - used)
    return ahead * work_s / tokens
