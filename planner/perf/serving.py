"""Continuous batching in equilibrium: the batch that a load keeps running, and what each request then waits.

vLLM's scheduler gives every running sequence one token per step and fills the rest of its token budget with prompts.
With D the time of a step without prefill and P what one prompt adds, u = X·P of the time goes to prompts at X requests
per second, so a token takes D/(1 − u). Little's law closes the loop: the batch is X times the time spent decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.perf.arrays import Array, Table
from planner.perf.chip import Chip
from planner.perf.coefficients import Coefficients
from planner.perf.roofline import Batch, step
from planner.perf.work import Work

ROUNDS = 24  # to 1e-4; 14 give 1e-3
DAMPING = 0.5
MAX_BUSY = 0.98
DISPERSAL = 0.84
LOOSE, LOOSER = 0.6, 0.035
APART = 0.7  # share of prompts of which no other rank has one at the same time
SMALLEST_CHUNK = 64.0  # tokens
SHORTEST_S = 1e-9
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Load(Table):
    """What arrives at one replica. `concurrency` clients that never pause, or (infinite then) `rate_rps` at random.

    `prompts_per_client`: how many requests the load generator sends per client; its first ones come all at once.
    """

    isl: Array  # tokens, mean
    osl: Array
    concurrency: Array
    rate_rps: Array
    prompts_per_client: Array
    spread: Array  # of output lengths, (longest - shortest) / longest; 0 when all are alike


@dataclass(frozen=True, kw_only=True)
class Engine(Table):
    """The scheduler's limits, per data-parallel rank."""

    budget_tokens: Array  # max_num_batched_tokens
    max_sequences: Array  # max_num_seqs
    kv_tokens: Array  # in the KV cache


@dataclass(frozen=True, kw_only=True)
class Served(Table):
    """Means of one replica in equilibrium. Seconds; per request, except `busy` and `running`."""

    tpot_s: Array
    ttft_s: Array
    decode_step_s: Array  # D
    prompt_s: Array  # P
    mixed_step_s: Array  # a step with a chunk of prompt in it
    way_s: Array  # the constant part of TTFT: front end and network
    start_s: Array  # from admission to the first token
    queue_s: Array  # waiting for a place among the running; infinite where more arrives than can be served
    burst_s: Array  # mean wait of the requests that come all at once
    busy: Array  # share of time that prompts take
    running: Array  # sequences decoding, per rank
    cap: Array  # the most that memory and max_num_seqs let run
    rate_rps: Array  # of the replica


def context_tokens(load: Load) -> Array:
    """Tokens in the cache of a request at a random instant of its decoding."""
    return np.asarray(load.isl + load.osl / 2)


def serve(work: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine, *, rounds: int = ROUNDS) -> Served:
    """The equilibrium of each configuration, by damped iteration."""
    context = context_tokens(load)
    cap = np.maximum(1.0, np.minimum(engine.max_sequences, engine.kv_tokens / context))
    closed = np.isfinite(load.concurrency)
    per_rank = np.where(closed, load.concurrency / work.dp, 1.0)
    places = np.minimum(per_rank, cap)
    running, rate, together = places, np.zeros_like(places), np.ones_like(places)
    for _ in range(rounds):
        times = _step_times(work, chip, co, load, engine, running, together)
        busy = np.minimum(rate * times.prompt_s, MAX_BUSY)
        start_s = _start_s(co, load, engine, times, busy, places)
        tokens_s = times.decode_s * np.maximum(1.0, load.osl - 1)
        entry_s = np.where(per_rank > cap, 0.0, way_s(co, load))  # a queue hides it
        wanted = np.where(
            closed, _closed_rate(places, start_s + entry_s, tokens_s, times.prompt_s), load.rate_rps / work.dp
        )
        # All places taken: cap = X·O·D/(1 − X·P).
        most = np.minimum(MAX_BUSY / times.prompt_s, cap / (tokens_s + cap * times.prompt_s))
        rate = rate + (np.minimum(wanted, most) - rate) * DAMPING
        busy = np.minimum(rate * times.prompt_s, MAX_BUSY)
        tpot_s = times.decode_s / (1 - busy)
        together = np.maximum(1.0, rate * times.mixed_s)
        now = np.clip(rate * tpot_s * np.maximum(1.0, load.osl - 1), 0.25, cap)
        running = running + (now - running) * DAMPING
    share = np.where(closed, 1 / load.prompts_per_client, 0.0)
    queue_s = np.where(closed, np.maximum(0.0, per_rank - cap) / rate, 0.0) * (1 - share / 2)
    queue_s = np.where(~closed & (load.rate_rps / work.dp > most * (1 + TOLERANCE)), np.inf, queue_s)
    each_s = _burst_prompt_s(work, chip, co, load, engine, places) + co.admit_s
    burst_s = np.where(closed, co.burst * (places - 1) * each_s, 0.0)
    return Served(
        tpot_s=tpot_s,
        ttft_s=way_s(co, load) + start_s + share * burst_s + queue_s,
        way_s=way_s(co, load),
        decode_step_s=times.decode_s,
        prompt_s=times.prompt_s,
        mixed_step_s=times.mixed_s,
        start_s=start_s,
        queue_s=queue_s,
        burst_s=burst_s,
        busy=busy,
        running=running,
        cap=cap,
        rate_rps=rate * work.dp,
    )


@dataclass(frozen=True, kw_only=True)
class _Times(Table):
    decode_s: Array
    prompt_s: Array
    mixed_s: Array


def _closed_rate(places: Array, wait_s: Array, tokens_s: Array, prompt_s: Array) -> Array:
    """X of N = X·(w + t/(1 − X·p)): the smaller root of w·p·X² − (N·p + w + t)·X + N = 0."""
    half = (places * prompt_s + wait_s + tokens_s) / 2
    return np.asarray(places / (half + np.sqrt(half * half - wait_s * prompt_s * places)))


def _step_times(
    work: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine, running: Array, together: Array
) -> _Times:
    context, none = context_tokens(load), np.zeros_like(running)
    each = np.maximum(1.0, running / work.pp)  # sequences of one micro-batch; stages work on pp of them at once
    plain = Batch(decoding=each, context=context, prefill=none, pairs=none, prompts=none, others=each)
    decode_s = step(work, chip, co, plain).total_s
    room = np.maximum(SMALLEST_CHUNK, engine.budget_tokens - each)
    chunk = np.minimum(load.isl, room)
    chunks = load.isl / chunk
    together = np.minimum(together, np.maximum(1.0, room / load.isl))
    mixed = Batch(
        decoding=each,
        context=context,
        prefill=chunk * together,
        pairs=load.isl**2 / 2 / chunks * together,
        prompts=together / chunks,
        others=each,
    )
    mixed_s = step(work, chip, co, mixed).total_s
    # Ranks step together, so a prompt on one holds up the others, unless theirs come in the same step.
    shared = 1 + (work.dp - 1) * APART
    prompt_s = np.maximum(SHORTEST_S, (mixed_s - decode_s) * chunks / together) * pipeline_share(work.pp) * shared
    return _Times(decode_s=decode_s, prompt_s=prompt_s, mixed_s=mixed_s * chunks)


def _burst_prompt_s(work: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine, places: Array) -> Array:
    """Time per prompt while the opening burst is prefilled: full budgets, and half of the places decode by then."""
    prefill = np.minimum(engine.budget_tokens, places * load.isl)
    prompts = prefill / load.isl
    batch = Batch(
        decoding=places / 2,
        context=load.isl,
        prefill=prefill,
        pairs=prefill * load.isl / 2,
        prompts=prompts,
        others=places / 2 + prefill,
    )
    return np.asarray(step(work, chip, co, batch).total_s / prompts)


def way_s(co: Coefficients, load: Load) -> Array:
    return np.asarray(co.request_s + load.isl * co.prompt_token_s)


def _start_s(co: Coefficients, load: Load, engine: Engine, times: _Times, busy: Array, places: Array) -> Array:
    """From the engine's queue to the first token: the step that runs on arrival, own steps, and prompts of others."""
    residual_s = (1 - busy) * times.decode_s
    alone = busy / (1 - busy) / 2  # Poisson arrivals before one server (M/D/1), in prompts
    return np.asarray(
        times.mixed_s
        + residual_s
        + times.prompt_s * np.where(np.isfinite(load.concurrency), _companions(co, load, engine, places), alone)
    )


def _companions(co: Coefficients, load: Load, engine: Engine, places: Array) -> Array:
    """Prompts that a closed loop brings within the same steps.

    Requests that started together end together, the more so the less their lengths differ; those that end in one
    step are followed by as many new prompts in one step. The constants fit a simulation of the loop.
    """
    spread = np.maximum(load.spread, 1e-9)
    apart = DISPERSAL * places / (spread * load.osl)
    alike = np.minimum(LOOSE + LOOSER * places, engine.budget_tokens / load.isl)
    others = np.maximum(0.0, places - 1)
    return np.asarray(co.bunching * np.minimum(np.minimum(apart, np.maximum(alike, 0.0)), others))


def pipeline_share(stages: Array) -> Array:
    """Of the time that a prompt's chunk takes to go through a pipeline, what it costs a sequence on average.

    Those of its own micro-batch, one of `stages`, wait all of it; the others wait for it at one stage.
    """
    return np.asarray((2 - 1 / stages) / stages)
