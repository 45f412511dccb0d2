"""What an engine's scheduler may do: token budget, sequences, and contexts by vLLM's own block accounting.

Whether requests wait for memory is decided here, and a tail of latencies with it. Reports are kept, since tables ask
for the same engine under many loads.

vLLM sets memory aside for sampling as many sequences as max_num_seqs allows, 5 GiB and more at its default. Whoever is
short of memory lowers it to what fits; so do we where nobody said a number, as the memory report does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from planner.contexts import context_lengths
from planner.devices import Device
from planner.engine import Engine
from planner.fit import gpu_memory_report
from planner.kv_blocks import NULL_BLOCKS, KvLayout
from planner.memory import CPU_BLOCK_SIZE_TOKENS, ENGINE_OVERHEAD_BYTES
from planner.models import ModelShape
from planner.perf.work import Layout
from planner.quantisations import Quantisation
from planner.types import GIB, PlannerError

# vLLM's server: 8,192 tokens per step on devices of 70 GiB and above, 2,048 below; sequences 1,024 and 256. On a CPU
# 2,048 and 128, for each worker.
LARGE_DEVICE_BYTES = 70 * GIB
LARGE_BUDGET, SMALL_BUDGET = 8192, 2048
LARGE_SEQUENCES, SMALL_SEQUENCES, CPU_SEQUENCES = 1024, 256, 128
REPORTS_KEPT = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one engine, or of each data-parallel rank. `blocks` are those that requests may use."""

    budget_tokens: int
    max_sequences: int
    blocks: int
    layout: KvLayout

    def contexts(self, tokens: float) -> float:
        """How many contexts of `tokens` the cache holds at once; a fraction, since loads are means."""
        low = int(tokens)
        below, above = self.layout.held_blocks(low), self.layout.held_blocks(low + 1)
        # Between whole lengths in proportion: a mean is seldom whole, and a step in it would be an artefact.
        held = below + (tokens - low) * (above - below)
        return self.blocks / max(held, 1e-9)

    def holds(self, tokens: float) -> bool:
        """Whether one request of `tokens` finds room in an empty engine."""
        return self.layout.held_blocks(ceil(tokens)) <= self.blocks


def default_budget_tokens(device: Device, layout: Layout) -> int:
    """vLLM's max_num_batched_tokens where nobody sets it."""
    if device.kind == "cpu":
        return SMALL_BUDGET * layout.tp * layout.pp
    return LARGE_BUDGET if device.memory_bytes >= LARGE_DEVICE_BYTES else SMALL_BUDGET


def default_sequences(device: Device, layout: Layout) -> int:
    """vLLM's max_num_seqs where nobody sets it."""
    if device.kind == "cpu":
        return CPU_SEQUENCES * layout.tp * layout.pp
    return LARGE_SEQUENCES if device.memory_bytes >= LARGE_DEVICE_BYTES else SMALL_SEQUENCES


def limits_of(
    shape: ModelShape,
    device: Device,
    layout: Layout,
    stored: Quantisation,
    *,
    kv_dtype: str,
    budget_tokens: int | None = None,
    max_sequences: int | None = None,
    kv_cache_bytes: int | None = None,
    lengths: tuple[float, float] = (1.0, 1.0),
) -> Limits:
    """The limits of an engine of `shape`, stored as `stored`. `kv_cache_bytes` is of one device; None: what is left.

    `lengths`: mean prompt and output tokens of what it is to serve; they matter where memory is short.

    Raises PlannerError for a split that vLLM refuses, and for weights that leave no room.
    """
    budget = budget_tokens or default_budget_tokens(device, layout)
    sequences = max_sequences or default_sequences(device, layout)
    engine = Engine(
        tp=layout.tp,
        pp=layout.pp,
        ep=_expert_ranks(shape, layout),
        kv_dtype=kv_dtype,
        max_num_batched_tokens=budget,
        max_num_seqs=sequences,
        block_size_tokens=CPU_BLOCK_SIZE_TOKENS if device.kind == "cpu" else Engine.block_size_tokens,
    )
    if kv_cache_bytes is None:
        pool = _pool(shape, stored, engine, device.memory_bytes, device.kind == "cpu")
        isl, osl = (max(1, round(mean)) for mean in lengths)
        if max_sequences is None and pool.blocks < sequences * pool.layout.held_blocks(isl + osl // 2):
            fewer = replace(engine, max_num_seqs=None)
            pool = _pool(shape, stored, fewer, device.memory_bytes, device.kind == "cpu", (isl, osl))
    else:
        pool = _Pool(blocks=_given_blocks(shape, engine, kv_cache_bytes), layout=engine.layout(shape))
    return Limits(
        budget_tokens=budget, max_sequences=sequences, blocks=max(0, pool.blocks - NULL_BLOCKS), layout=pool.layout
    )


@dataclass(frozen=True)
class _Pool:
    blocks: int
    layout: KvLayout


@lru_cache(maxsize=REPORTS_KEPT)
def _pool(
    shape: ModelShape,
    stored: Quantisation,
    engine: Engine,
    memory_bytes: int,
    cpu: bool,
    lengths: tuple[int, int] = (1, 1),
) -> _Pool:
    held = replace(shape, quantisation=stored)
    if cpu:
        weights = held.weight_bytes(tp=engine.tp, pp=engine.pp)
        left = int(memory_bytes * engine.gpu_memory_utilization) - weights - ENGINE_OVERHEAD_BYTES
        return _Pool(blocks=_given_blocks(shape, engine, left), layout=engine.layout(shape))
    report = gpu_memory_report(held, engine, context_lengths(lengths), memory_bytes=memory_bytes)
    return _Pool(blocks=report.blocks, layout=report.layout)


def _given_blocks(shape: ModelShape, engine: Engine, pool_bytes: int) -> int:
    layout = engine.layout(shape)
    stages = [stage for stage in range(engine.pp) if layout.block_bytes(stage=stage)]
    return min(layout.blocks(pool_bytes, stage=stage) for stage in stages)


def _expert_ranks(shape: ModelShape, layout: Layout) -> int:
    """Devices over which the experts lie: whole ones by `ep`; cut ones by all that share them, as many bytes each."""
    if layout.ep > 1 or layout.dp == 1 or not shape.experts:
        return layout.ep
    ranks = layout.tp * layout.dp
    return ranks if ranks <= shape.num_experts else 1


def no_room(shape: ModelShape, device: Device, layout: Layout, weight_bytes: float, tokens: float) -> PlannerError:
    """The refusal of an engine whose cache does not hold one request of `tokens`."""
    return PlannerError(
        "settings",
        "tp",
        layout.tp,
        f"{shape.name or 'the model'} needs {weight_bytes / GIB:.1f} GiB of weights per device, activations and cache "
        f"for {tokens:,.0f} tokens, and the {device.label} has {device.memory_bytes / GIB:.1f} GiB",
        "raise tp or pp, pack the weights further, or choose a larger device",
    )
