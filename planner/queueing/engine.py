"""Engines that decode, and perhaps prefill among it: continuous batching in closed form.

Steps follow one another. With `λ` requests per second on one engine, Little's law puts `λ T E[steps]` sequences and
`λ T E[prompt]` prompt tokens into a step of `T` seconds; step time is linear in both, so

    ρ = λ (prefill work + decode steps x (sequence + context))        T = step_s / (1 - ρ)

TPOT of one request: its `n` steps are work that prefills of others interrupt, so its time is a delay cycle: mean
`n T`, and the prefills' variance `n t λE[S²] / (1 - ρ_p)³`. To this come the slow swings of the batch, averaged over
the request's life, and what queued up behind its own prompt and interrupts its first steps. TTFT: what is left of the
running step, the prompts in it and beside one's own (a gated queue), the own prompt in chunks.

Valid while the batch keeps below max_num_seqs and the KV cache: `fits` says so, nothing else here knows of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from planner.queueing.costs import Bools, EngineRules, Floats, Number, StepCosts
from planner.queueing.goals import Metric
from planner.queueing.lengths import Lengths, Points
from planner.queueing.waits import late_share, quantile_s

TINY = 1e-12
SPREADS = 2.0
"""Standard deviations of the batch that must fit under the caps."""
RESIDUAL_CUTS = (0.25, 0.75)
"""How much of the running step is left when a request comes, as two halves of all requests."""


@dataclass(frozen=True, kw_only=True)
class EngineEstimate:
    """Arrays over configurations, per engine; times in seconds, infinite where the load is 1 or more."""

    load: Floats  # ρ
    prefill_load: Floats  # the part of it that prompts are
    step_s: Floats  # mean time of a step that a running request sees
    batch: Floats  # mean sequences decoding
    batch_sd: Floats
    kv_tokens: Floats  # mean
    kv_tokens_sd: Floats
    seqs_cap: Floats
    kv_cap_tokens: Floats
    tpot_mean_s: Floats  # by class of output length: (configurations, classes)
    tpot_sd_s: Floats
    full_step_s: Floats  # a step whose token budget is full: no TPOT is above it
    outputs: Points
    waits: Floats
    wait_s: Floats
    own_s: Floats  # TTFT but for the wait: (configurations, classes)
    own_weights: Floats

    @property
    def fits(self) -> Bools:
        """Whether the batch keeps below max_num_seqs and the KV cache, so that the estimate means something."""
        seqs = self.batch + SPREADS * self.batch_sd <= self.seqs_cap
        kv = self.kv_tokens + SPREADS * self.kv_tokens_sd <= self.kv_cap_tokens
        fits: Bools = (self.load < 1) & seqs & kv
        return fits

    def exceeds(self, metric: Metric, limit_s: Number) -> Floats:
        """Share of requests whose `metric` is above `limit_s`."""
        of = {"ttft": self.ttft_exceeds, "tpot": self.tpot_exceeds, "e2e": self.e2e_exceeds}
        return of[metric](limit_s)

    def tpot_exceeds(self, limit_s: Number) -> Floats:
        """Share of requests whose TPOT is above `limit_s`; lognormal about each class's mean."""
        late = lognormal_exceeds(limit_s, self.tpot_mean_s, self.tpot_sd_s)
        share: Floats = late @ self.outputs.weights
        return np.where((self.load < 1) & (limit_s >= self.full_step_s), 0.0, share)

    def tpot_s(self, share: float) -> Floats:
        """The quantile `share` of TPOT."""
        return quantile_s(self.tpot_exceeds, share, self.mean_tpot_s)

    @property
    def mean_tpot_s(self) -> Floats:
        mean: Floats = self.tpot_mean_s @ self.outputs.weights
        return mean

    def ttft_exceeds(self, limit_s: Number) -> Floats:
        """Share of requests whose TTFT is above `limit_s`."""
        return late_share(limit_s, own_s=self.own_s, weights=self.own_weights, waits=self.waits, wait_s=self.wait_s)

    def ttft_s(self, share: float) -> Floats:
        """The quantile `share` of TTFT."""
        return quantile_s(self.ttft_exceeds, share, self.mean_ttft_s)

    @property
    def mean_ttft_s(self) -> Floats:
        mean: Floats = self.wait_s + self.own_s @ self.own_weights
        return mean

    def e2e_exceeds(self, limit_s: Number) -> Floats:
        """Share of requests whose whole answer takes longer than `limit_s`; lognormal about each class's mean."""
        with np.errstate(invalid="ignore", divide="ignore"):
            wait_s2 = np.where(self.waits > 0, (2 / self.waits - 1) * self.wait_s**2, 0.0)
            ttft_s2 = wait_s2 + self.own_s**2 @ self.own_weights - (self.own_s @ self.own_weights) ** 2
            steps = self.outputs.values
            mean = self.mean_ttft_s[..., None] + steps * self.tpot_mean_s
            sd = np.sqrt(np.maximum(ttft_s2[..., None] + (steps * self.tpot_sd_s) ** 2, 0.0))
        return lognormal_exceeds(limit_s, mean, sd) @ self.outputs.weights

    def e2e_s(self, share: float) -> Floats:
        """The quantile `share` of the time from request to the last token."""
        return quantile_s(self.e2e_exceeds, share, self.mean_ttft_s + self.mean_tpot_s)


def mixed_engine(
    costs: StepCosts,
    rules: EngineRules,
    lengths: Lengths,
    *,
    rate_rps: Number,
    arrival_scv: Number = 1.0,
    seen: Lengths | None = None,
) -> EngineEstimate:
    """One engine that prefills and decodes `rate_rps` requests per second.

    `arrival_scv` is variance / mean² of the gaps between arrivals: 1 for Poisson. `seen` are the requests whose
    percentiles are asked for, where they are a class among others; all of them by default.
    """
    return _estimate(_flow(costs, rules, lengths, rate_rps, arrival_scv, prefills=True), seen or lengths)


def decode_engine(
    costs: StepCosts,
    rules: EngineRules,
    lengths: Lengths,
    *,
    rate_rps: Number,
    arrival_scv: Number = 1.0,
    transfer_s: Number = 0.0,
    seen: Lengths | None = None,
) -> EngineEstimate:
    """One engine of a decode pool: prompts come with their KV, `transfer_s` after their first token.

    `ttft_s` of the answer is the wait for the second token's step, as the first comes from the prefill pool.
    """
    flow = _flow(costs, rules, lengths, rate_rps, arrival_scv, prefills=False)
    return _estimate(flow, seen or lengths, transfer_s=transfer_s)


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """Means that both TTFT and TPOT start from. Unstable configurations hold NaN, which ends as infinity."""

    costs: StepCosts
    rules: EngineRules
    lengths: Lengths
    rate: Floats
    scv: Floats
    load: Floats
    prefill_load: Floats
    prompt_square_s2: Floats  # E[S²] of prefill work, raised for bursts
    token_s: Floats  # a decode token's own share of a step: sequence and context
    step_s: Floats
    batch: Floats
    prefills: bool

    @property
    def bare_step_s(self) -> Floats:
        """A step without prefill."""
        return self.step_s * (1 - self.prefill_load)


def _flow(
    costs: StepCosts, rules: EngineRules, lengths: Lengths, rate_rps: Number, arrival_scv: Number, *, prefills: bool
) -> _Flow:
    prompts = lengths.prompts
    token_s = np.asarray(costs.sequence_s + costs.kv_token_s * lengths.mean_context_tokens, dtype=float)
    work_s = np.asarray(costs.sequence_s + prompts.mean_work_s(costs), dtype=float) if prefills else np.zeros(())
    square_s2 = prompts.second_moment_s2(costs, fixed_s=costs.sequence_s) if prefills else 0.0
    rate, scv, token_s, work_s, square_s2, first_s = np.broadcast_arrays(
        np.asarray(rate_rps, dtype=float),
        np.asarray(arrival_scv, dtype=float),
        token_s,
        work_s,
        square_s2,
        costs.step_s,
    )
    prefill_load = rate * work_s
    load = prefill_load + rate * lengths.mean_decode_steps * token_s
    stable = np.where(load < 1, 1 - load, np.nan)
    step_s = (first_s + token_s) / stable
    return _Flow(
        costs=costs,
        rules=rules,
        lengths=lengths,
        rate=rate,
        scv=scv,
        load=load,
        prefill_load=prefill_load,
        prompt_square_s2=square_s2 + (scv - 1) * work_s**2,
        token_s=token_s,
        step_s=step_s,
        batch=rate * lengths.mean_decode_steps * step_s,
        prefills=prefills,
    )


def _estimate(flow: _Flow, seen: Lengths, *, transfer_s: Number = 0.0) -> EngineEstimate:
    lengths, rules = flow.lengths, flow.rules
    waits, wait_s, own_s, own_weights = _ttft_parts(flow, seen)
    batch_variance, relaxation_s = _batch_swings(flow)
    first_gap_s = own_s @ own_weights + wait_s
    tpot_mean_s, tpot_sd_s = _tpot_parts(flow, seen, batch_variance, relaxation_s, first_gap_s, transfer_s)
    block_waste = flow.batch * np.asarray(rules.block_size_tokens) / 2
    context = lengths.mean_context_tokens
    shape = flow.load.shape
    return EngineEstimate(
        load=flow.load,
        prefill_load=flow.prefill_load,
        step_s=_infinite(flow.step_s),
        batch=_infinite(flow.batch),
        batch_sd=_infinite(np.sqrt(batch_variance)),
        kv_tokens=_infinite(flow.batch * context + block_waste),
        kv_tokens_sd=_infinite(np.sqrt(batch_variance * context**2 + flow.batch * lengths.context_variance)),
        seqs_cap=np.broadcast_to(np.asarray(rules.max_num_seqs, dtype=float), shape),
        kv_cap_tokens=np.broadcast_to(np.asarray(rules.kv_tokens, dtype=float), shape),
        tpot_mean_s=_infinite(tpot_mean_s),
        tpot_sd_s=np.nan_to_num(tpot_sd_s, nan=0.0),
        full_step_s=_infinite(_full_step_s(flow, np.sqrt(batch_variance))),
        outputs=seen.outputs,
        waits=np.nan_to_num(waits, nan=1.0),
        wait_s=_infinite(wait_s),
        own_s=_infinite(own_s),
        own_weights=own_weights,
    )


def _batch_swings(flow: _Flow) -> tuple[Floats, Floats]:
    """(variance of the batch, its relaxation time): linear noise about the mean.

    Arrivals and ends feed it, and so does the time that prefills take away from decoding.
    """
    decodes = 1 - flow.prefill_load
    life_s = flow.lengths.mean_decode_steps * flow.step_s
    relaxation_s = life_s * decodes / (1 - flow.load)
    counted = flow.rate * (1 + flow.scv) / 2
    stalled = (flow.rate / decodes) ** 2 * flow.rate * flow.prompt_square_s2 / 2
    return (counted + stalled) * relaxation_s, relaxation_s


def _full_step_s(flow: _Flow, batch_sd: Floats) -> Floats:
    """A step with a large batch, and with prompts for the rest of its token budget."""
    batch = flow.batch + SPREADS * batch_sd
    decoding_s = np.asarray(flow.costs.step_s) + flow.token_s * batch
    if not flow.prefills:  # its first gap holds a transfer and a wait, and knows no such bound
        return np.full_like(decoding_s, np.inf)
    token_s = flow.lengths.prompts.mean_work_s(flow.costs) / flow.lengths.prompts.mean_tokens
    return decoding_s + np.maximum(np.asarray(flow.rules.max_num_batched_tokens) - batch, 1.0) * token_s


def _tpot_parts(
    flow: _Flow, seen: Lengths, batch_variance: Floats, relaxation_s: Floats, first_gap_s: Floats, transfer_s: Number
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of TPOT by class of output length."""
    steps = seen.outputs.values
    decodes = (1 - flow.prefill_load)[..., None]
    work_s = flow.bare_step_s[..., None] * steps
    # Prompts that arrived while the own one was waiting and computing interrupt the first steps.
    behind_s = flow.prefill_load * first_gap_s if flow.prefills else first_gap_s + transfer_s
    mean_s = (work_s + behind_s[..., None]) / decodes if flow.prefills else work_s + np.asarray(behind_s)[..., None]
    stalls_s2 = work_s * (flow.rate * flow.prompt_square_s2)[..., None] / decodes**3
    behind_s2 = (behind_s[..., None] / decodes) ** 2
    life = steps * flow.step_s[..., None] / np.maximum(relaxation_s, TINY)[..., None]
    averaged = 2 * (life - 1 + np.exp(-life)) / life**2
    context_variance = np.asarray(flow.costs.kv_token_s) ** 2 * flow.batch * flow.lengths.context_variance
    step_variance = flow.token_s**2 * batch_variance + context_variance
    swings_s2 = (steps / decodes) ** 2 * step_variance[..., None] * averaged
    return mean_s / steps, np.sqrt(stalls_s2 + behind_s2 + swings_s2) / steps


def _ttft_parts(flow: _Flow, seen: Lengths) -> tuple[Floats, Floats, Floats, Floats]:
    """(share that waits, mean wait, own part by class, weights of the classes)."""
    prompts, costs = seen.prompts, flow.costs
    bare_s = flow.bare_step_s
    room = np.maximum(np.asarray(flow.rules.max_num_batched_tokens) - flow.batch, 1.0)
    if flow.prefills:
        waits, wait_s = _wait_for_prompts(flow, room)
        own_s = prompts.work_s(costs) + np.ceil(prompts.tokens / room[..., None]) * bare_s[..., None]
        fixed_s = np.asarray(costs.overhead_s + costs.sequence_s, dtype=float)
    else:
        waits, wait_s = np.zeros_like(bare_s), np.zeros_like(bare_s)
        own_s = bare_s[..., None] * np.ones_like(prompts.tokens)
        fixed_s = np.zeros(())
    # What is left of the running step; with async scheduling, the next one is settled as well.
    cuts = np.asarray(RESIDUAL_CUTS) + flow.rules.lag_steps
    left_s = (bare_s * (1 - np.exp(-flow.batch)))[..., None] * cuts
    own_s = (own_s + fixed_s[..., None])[..., :, None] + left_s[..., None, :]
    weights = np.repeat(prompts.weights, len(cuts)) / len(cuts)
    # Not -1: of no configurations numpy could not tell how long the last axis is.
    return waits, wait_s, own_s.reshape(*own_s.shape[:-2], own_s.shape[-2] * own_s.shape[-1]), weights


def _wait_for_prompts(flow: _Flow, room: Floats) -> tuple[Floats, Floats]:
    """(share that waits, mean wait) for other prompts: those in the running step, and those in one's own.

    A gated queue: a step computes whoever came during the one before, and all of them end together. So step times
    `D' = t + prompts that came in D` have mean t / (1 - ρ_p) and variance λE[S²] mean / (1 - ρ_p²); an arrival meets
    a long step rather than a short one, waits for the rest of it, then for all that came in it.
    """
    prompts = flow.lengths.prompts
    bare_s, load, lag = flow.bare_step_s, flow.prefill_load, flow.rules.lag_steps
    spread_s = flow.rate * flow.prompt_square_s2 / (1 - load**2)
    met_s = bare_s / (1 - load) + spread_s
    gated_s = met_s * (1 + 2 * load) / 2 - bare_s / 2 + lag * bare_s * load / (1 - load)
    # Where prompts fill the token budget, each token also bears its share of the decoding in its step.
    full_load = load + flow.rate * prompts.mean_tokens * bare_s / room
    wait_s = np.where(full_load < 1, gated_s * (1 - load) / np.maximum(1 - full_load, TINY), np.nan)
    none_in_step = np.exp(-flow.rate * bare_s / (1 - load))
    none_about = none_in_step ** (1 + lag) * (1 - load) * np.exp(-flow.rate * bare_s)
    return 1 - none_about, wait_s


def lognormal_exceeds(limit_s: Number, mean_s: Floats, sd_s: Floats) -> Floats:
    """P(X > limit) by class, of a positive X with this mean and standard deviation; 1 where the mean is infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spread2 = np.log1p((sd_s / mean_s) ** 2)
        above = np.log(mean_s) - spread2 / 2 - np.log(np.asarray(limit_s, dtype=float))[..., None]
        return np.where(np.isfinite(mean_s), scipy.special.ndtr(above / np.maximum(np.sqrt(spread2), 1e-9)), 1.0)


def _infinite(values: Floats) -> Floats:
    return np.nan_to_num(values, nan=np.inf, posinf=np.inf)
