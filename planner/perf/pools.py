"""Loads other than one engine's equilibrium: prefill and decode in pools of their own, and batches without arrivals."""

from __future__ import annotations

import numpy as np

from planner.perf.arrays import Array
from planner.perf.chip import Chip
from planner.perf.coefficients import Coefficients
from planner.perf.roofline import Batch, step
from planner.perf.serving import (
    MAX_BUSY,
    SHORTEST_S,
    TOLERANCE,
    Engine,
    Load,
    Served,
    context_tokens,
    way_s,
)
from planner.perf.work import Work

ROUNDS = 40
DAMPING = 0.5
NETWORK_SHARE = 0.7  # of the sheet bandwidth, for a cache on its way from prefill to decode
TRANSFER_S = 5e-3  # handshake and look-up


def serve_pools(
    prefill: Work, decode: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine, replicas: tuple[Array, Array]
) -> Served:
    """The equilibrium of prefill and decode pools; `replicas` of each. `engine` holds the decode side's limits."""
    prefill_ranks, decode_ranks = replicas[0] * prefill.dp, replicas[1] * decode.dp
    closed = np.isfinite(load.concurrency)
    clients = np.where(closed, load.concurrency, 1.0)
    cap = np.maximum(1.0, np.minimum(engine.max_sequences, engine.kv_tokens / context_tokens(load)))
    prompt_s = _prompt_alone_s(prefill, chip, co, load, engine)
    most = MAX_BUSY * prefill_ranks / prompt_s
    burst_s = np.where(closed, co.burst * np.maximum(0.0, clients / prefill_ranks - 1) * (prompt_s + co.admit_s), 0.0)
    share = np.where(closed, 1 / load.prompts_per_client, 0.0)
    tokens = np.maximum(1.0, load.osl - 1)
    move_s = TRANSFER_S + load.isl * decode.kv_bytes_held * decode.pp / (
        np.where(np.isfinite(chip.network), chip.network, chip.link) * NETWORK_SHARE
    )
    rate, running = np.minimum(most, 1.0) / 2, np.minimum(cap, clients / decode_ranks)
    for _ in range(ROUNDS):
        tpot_s = _decode_s(decode, chip, co, load, running)
        busy = np.minimum(rate / most * MAX_BUSY, MAX_BUSY)
        start_s = prompt_s * (1 + busy / (1 - busy) / 2) + move_s + 1.5 * tpot_s
        through = np.minimum(most, cap * decode_ranks / (tpot_s * tokens))
        wanted = np.where(closed, clients / (start_s + way_s(co, load) + tokens * tpot_s), load.rate_rps)
        rate = rate + (np.minimum(wanted, through) - rate) * DAMPING
        now = np.clip(rate * tpot_s * tokens / decode_ranks, 0.25, cap)
        running = running + (now - running) * DAMPING
    cycle_s = start_s + way_s(co, load) + tokens * tpot_s
    queue_s = np.where(closed, np.maximum(0.0, clients / rate - cycle_s), 0.0) * (1 - share / 2)
    queue_s = np.where(~closed & (load.rate_rps > through * (1 + TOLERANCE)), np.inf, queue_s)
    return Served(
        tpot_s=tpot_s,
        ttft_s=way_s(co, load) + start_s + share * burst_s + queue_s,
        way_s=way_s(co, load),
        decode_step_s=tpot_s,
        prompt_s=prompt_s,
        mixed_step_s=prompt_s,
        start_s=start_s,
        queue_s=queue_s,
        burst_s=burst_s,
        busy=busy,
        running=running,
        cap=cap,
        rate_rps=rate,
    )


def serve_batch(work: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine) -> Served:
    """One batch of `concurrency` requests, all there at the start and none after: prefill, then decode.

    The TTFT is the time until all prompts are done. More requests than fit run in waves.
    """
    cap = np.maximum(1.0, np.minimum(engine.max_sequences, engine.kv_tokens / (load.isl + load.osl)))
    per_rank = load.concurrency / work.dp
    places = np.minimum(per_rank, cap)
    chunk = np.minimum(engine.budget_tokens, places * load.isl)
    chunks = places * load.isl / chunk
    decoding = np.zeros_like(places)
    pairs = chunk * np.minimum(load.isl, chunk) / 2 * np.maximum(1.0, load.isl / chunk)
    first = Batch(
        decoding=decoding, context=load.isl, prefill=chunk, pairs=pairs, prompts=places / chunks, others=chunk
    )
    prefill_s = step(work, chip, co, first).total_s * chunks
    tpot_s = _decode_s(work, chip, co, load, places)
    wave_s = prefill_s + np.maximum(0.0, load.osl - 1) * tpot_s
    waves = np.ceil(per_rank / cap - 1e-9)
    total_s = wave_s * (1 + (waves - 1) * np.minimum(1.0, per_rank / (cap * waves)))
    zero = np.zeros_like(places)
    return Served(
        tpot_s=tpot_s,
        ttft_s=prefill_s + (waves - 1) / 2 * wave_s,
        decode_step_s=tpot_s,
        prompt_s=prefill_s / places,
        mixed_step_s=prefill_s,
        way_s=zero,
        start_s=prefill_s,
        queue_s=(waves - 1) / 2 * wave_s,
        burst_s=zero,
        busy=zero,
        running=places,
        cap=cap,
        rate_rps=load.concurrency / np.maximum(total_s, SHORTEST_S),
    )


def _prompt_alone_s(work: Work, chip: Chip, co: Coefficients, load: Load, engine: Engine) -> Array:
    chunk = np.minimum(load.isl, engine.budget_tokens)
    chunks = load.isl / chunk
    none = np.zeros_like(chunk)
    batch = Batch(
        decoding=none, context=load.isl, prefill=chunk, pairs=load.isl**2 / 2 / chunks, prompts=1 / chunks, others=chunk
    )
    # Pipeline stages take prompts one after another, so a prompt waits for pp of them and delays others by one.
    return np.asarray(step(work, chip, co, batch).total_s * chunks)


def _decode_s(work: Work, chip: Chip, co: Coefficients, load: Load, running: Array) -> Array:
    none = np.zeros_like(running)
    each = np.maximum(1.0, running / work.pp)
    batch = Batch(decoding=each, context=context_tokens(load), prefill=none, pairs=none, prompts=none, others=each)
    return step(work, chip, co, batch).total_s
