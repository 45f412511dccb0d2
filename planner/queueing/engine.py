"""Engines that decode, and perhaps prefill among it: continuous batching in closed form.

Steps follow one another. With `λ` requests per second on one engine, Little's law puts `λ T E[steps]` sequences and
`λ T E[prompt]` prompt tokens into a step of `T` seconds; step time is linear in both, so

    ρ = λ (prefill work + decode steps x (sequence + context))        T = step_s / (1 - ρ)

TPOT of one request: its `n` steps are work that prefills of others interrupt, so its time is a delay cycle: mean
`n T`, and the prefills' variance `n t λE[S²] / (1 - ρ_p)³`. To this come the slow swings of the batch, averaged over
the request's life, and what queued up behind its own prompt and interrupts its first steps. TTFT: what is left of the
running step, the prompts ahead (M/G/1 in prompt work), the own prompt in chunks.

Valid while the batch keeps below max_num_seqs and the KV cache: `fits` says so, nothing else here knows of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from planner.queueing.costs import EngineRules, Floats, Number, StepCosts
from planner.queueing.lengths import Lengths, Points
from planner.queueing.waits import late_share, quantile_s

SPREADS = 2.0
"""Standard deviations of the batch that must fit under the caps."""
RESIDUAL_CUTS = (0.125, 0.375, 0.625, 0.875)
"""Where in the running step an arrival falls, as four equal parts."""


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
    outputs: Points
    waits: Floats
    wait_s: Floats
    own_s: Floats  # TTFT but for the wait: (configurations, classes)
    own_weights: Floats

    @property
    def fits(self) -> Floats:
        """Whether the batch keeps below max_num_seqs and the KV cache, so that the estimate means something."""
        seqs = self.batch + SPREADS * self.batch_sd <= self.seqs_cap
        kv = self.kv_tokens + SPREADS * self.kv_tokens_sd <= self.kv_cap_tokens
        fits: Floats = (self.load < 1) & seqs & kv
        return fits

    def tpot_exceeds(self, limit_s: Number) -> Floats:
        """Share of requests whose TPOT is above `limit_s`; lognormal about each class's mean."""
        mean, sd = self.tpot_mean_s, self.tpot_sd_s
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.log1p((sd / mean) ** 2))
            center = np.log(mean) - spread**2 / 2
            z = (np.log(np.asarray(limit_s, dtype=float))[..., None] - center) / np.maximum(spread, 1e-9)
        late = np.where(np.isfinite(mean), 1 - ndtr(z), 1.0)
        share: Floats = late @ self.outputs.weights
        return share

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


def mixed_engine(
    costs: StepCosts, rules: EngineRules, lengths: Lengths, *, rate_rps: Number, arrival_scv: Number = 1.0
) -> EngineEstimate:
    """One engine that prefills and decodes `rate_rps` requests per second.

    `arrival_scv` is variance / mean² of the gaps between arrivals: 1 for Poisson.
    """
    return _estimate(_flow(costs, rules, lengths, rate_rps, arrival_scv, prefills=True))


def decode_engine(
    costs: StepCosts,
    rules: EngineRules,
    lengths: Lengths,
    *,
    rate_rps: Number,
    arrival_scv: Number = 1.0,
    transfer_s: Number = 0.0,
) -> EngineEstimate:
    """One engine of a decode pool: prompts come with their KV, `transfer_s` after their first token.

    `ttft_s` of the answer is the wait for the second token's step, as the first comes from the prefill pool.
    """
    return _estimate(_flow(costs, rules, lengths, rate_rps, arrival_scv, prefills=False), transfer_s=transfer_s)


def departures_scv(load: Number, *, arrival_scv: Number, service_scv: Number) -> Number:
    """Burstiness of what leaves a prefill pool, and so reaches the decode pool (Marshall's approximation)."""
    return load * load * service_scv + (1 - load * load) * arrival_scv


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
        np.asarray(rate_rps, dtype=float), np.asarray(arrival_scv, dtype=float), token_s, work_s, square_s2, costs.step_s
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


def _estimate(flow: _Flow, *, transfer_s: Number = 0.0) -> EngineEstimate:
    lengths, rules = flow.lengths, flow.rules
    waits, wait_s, own_s, own_weights = _ttft_parts(flow)
    batch_variance, relaxation_s = _batch_swings(flow)
    first_gap_s = own_s @ own_weights + wait_s
    tpot_mean_s, tpot_sd_s = _tpot_parts(flow, batch_variance, relaxation_s, first_gap_s, transfer_s)
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
        outputs=lengths.outputs,
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


def _tpot_parts(
    flow: _Flow, batch_variance: Floats, relaxation_s: Floats, first_gap_s: Floats, transfer_s: Number
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of TPOT by class of output length."""
    steps = flow.lengths.outputs.values
    decodes = (1 - flow.prefill_load)[..., None]
    work_s = flow.bare_step_s[..., None] * steps
    # Prompts that arrived while the own one was waiting and computing interrupt the first steps.
    behind_s = flow.prefill_load * first_gap_s if flow.prefills else first_gap_s + transfer_s
    mean_s = (work_s + behind_s[..., None]) / decodes if flow.prefills else work_s + np.asarray(behind_s)[..., None]
    stalls_s2 = work_s * (flow.rate * flow.prompt_square_s2)[..., None] / decodes**3
    behind_s2 = (behind_s[..., None] / decodes) ** 2
    life = steps * flow.step_s[..., None] / relaxation_s[..., None]
    averaged = 2 * (life - 1 + np.exp(-life)) / life**2
    context_variance = np.asarray(flow.costs.kv_token_s) ** 2 * flow.batch * flow.lengths.context_variance
    step_variance = flow.token_s**2 * batch_variance + context_variance
    swings_s2 = (steps / decodes) ** 2 * step_variance[..., None] * averaged
    return mean_s / steps, np.sqrt(stalls_s2 + behind_s2 + swings_s2) / steps


def _ttft_parts(flow: _Flow) -> tuple[Floats, Floats, Floats, Floats]:
    """(share that waits, mean wait, own part by class, weights of the classes)."""
    prompts, costs = flow.lengths.prompts, flow.costs
    busy = 1 - np.exp(-flow.batch)
    bare_s = flow.bare_step_s
    room = np.maximum(np.asarray(flow.rules.max_num_batched_tokens) - flow.batch, 1.0)
    if flow.prefills:
        token_s = bare_s / room  # a prompt token's share of the decode work in its step
        served_s = flow.prefill_load / flow.rate + token_s * prompts.mean_tokens
        square_s2 = prompts.second_moment_s2(costs, fixed_s=costs.sequence_s, more_token_s=token_s)
        square_s2 = square_s2 + (flow.scv - 1) * served_s**2
        waits = np.minimum(flow.rate * served_s, 1.0)
        wait_s = np.where(waits < 1, flow.rate * square_s2 / (2 * np.maximum(1 - waits, 1e-12)), np.nan)
        chunks = np.ceil(prompts.tokens / room[..., None])
        own_s = prompts.work_s(costs) + chunks * bare_s[..., None]
    else:
        waits, wait_s = np.zeros_like(bare_s), np.zeros_like(bare_s)
        own_s = bare_s[..., None] * np.ones_like(prompts.tokens)
    # What is left of the running step; with async scheduling the next one is full already; then those who came along.
    lag_s = flow.rules.lag_steps * bare_s * busy
    cuts = np.asarray(RESIDUAL_CUTS)
    left_s = (bare_s * busy * (1 - waits))[..., None] * cuts + lag_s[..., None]
    left_s = left_s * (1 + flow.prefill_load)[..., None]
    fixed_s = np.asarray(costs.overhead_s + costs.sequence_s if flow.prefills else 0.0)
    own_s = (own_s + fixed_s[..., None])[..., :, None] + left_s[..., None, :]
    weights = np.repeat(prompts.weights, len(cuts)) / len(cuts)
    return waits, wait_s, own_s.reshape(*own_s.shape[:-2], -1), weights


def _infinite(values: Floats) -> Floats:
    return np.nan_to_num(values, nan=np.inf, posinf=np.inf)
