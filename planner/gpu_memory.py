"""Does an engine fit into its GPUs, and how many contexts does it hold? Arithmetic a person can check line by line.

KV pool = memory × utilization - weights - activations - CUDA graphs - other
blocks  = floor(KV pool / block bytes), the least over the pipeline stages
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.contexts import ContextLengths, contexts_that_fit
from planner.engine import MAX_NUM_SEQS, Engine
from planner.kv_blocks import NULL_BLOCKS, KvCapacity, KvLayout
from planner.models import ModelShape
from planner.types import GIB

# Head-room of the sum of running contexts, in standard deviations; beyond it vLLM preempts and computes again.
SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True)
class GpuMemoryReport:
    """The inputs, all of one device of the tightest pipeline stage; everything else follows from them.

    With data-parallel ranks (`ep` beyond `tp`) blocks and contexts are those of one rank.
    """

    shape: ModelShape
    engine: Engine
    layout: KvLayout
    lengths: ContextLengths
    device: str
    memory_bytes: int
    weights_bytes: int
    activation_bytes: int
    graph_bytes: int
    other_bytes: int
    stage: int = 0

    @property
    def budget_bytes(self) -> int:
        return int(self.memory_bytes * self.engine.gpu_memory_utilization)

    @property
    def used_bytes(self) -> int:
        """All but the KV cache."""
        return self.weights_bytes + self.activation_bytes + self.graph_bytes + self.other_bytes

    @property
    def kv_pool_bytes(self) -> int:
        return max(0, self.budget_bytes - self.used_bytes)

    @property
    def block_bytes(self) -> int:
        return self.layout.block_bytes(stage=self.stage)

    @property
    def blocks(self) -> int:
        return self.layout.blocks(self.kv_pool_bytes, stage=self.stage)

    @property
    def usable_blocks(self) -> int:
        return max(0, self.blocks - NULL_BLOCKS)

    @property
    def max_model_len_tokens(self) -> int:
        return self.engine.max_len(self.shape)

    @property
    def capacity(self) -> KvCapacity:
        """What vLLM will log as "KV cache size" and "Maximum concurrency"."""
        return self.layout.capacity(
            self.blocks,
            max_model_len_tokens=self.max_model_len_tokens,
            in_flight_tokens=self.engine.in_flight_tokens,
        )

    @property
    def blocks_of_longest(self) -> int:
        """Blocks that vLLM wants free for one request of `max_model_len`; with fewer it refuses to start."""
        return self._reserved(self.max_model_len_tokens)

    def _reserved(self, tokens: int) -> int:
        return self.layout.reserved_blocks(tokens, in_flight_tokens=self.engine.in_flight_tokens)

    def contexts(self, *, sigmas: float = 0.0) -> int:
        """Running contexts of the workload that the pool holds, on average or with head-room."""
        mean, deviation = self.lengths.moments(self.layout.held_blocks)
        return contexts_that_fit(self.usable_blocks, mean, deviation, sigmas=sigmas)

    @property
    def max_num_seqs(self) -> int:
        return self.engine.max_num_seqs or MAX_NUM_SEQS

    @property
    def weights_fit(self) -> bool:
        return self.used_bytes < self.budget_bytes

    @property
    def request_fits(self) -> bool:
        return self.blocks_of_longest <= self.usable_blocks

    @property
    def fits(self) -> bool:
        """Whether vLLM would start, and the workload's longest request is allowed."""
        return self.request_fits and self.lengths.longest_tokens <= self.max_model_len_tokens

    @property
    def longest_that_fits_tokens(self) -> int:
        """The greatest `max_model_len` that the pool allows; 0 if none."""
        low, high = 0, self.max_model_len_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._reserved(middle) <= self.usable_blocks else (low, middle - 1)
        return low

    @property
    def remedy(self) -> str:
        """What to change; empty when everything fits."""
        if not self.weights_fit:
            return f"split over more devices or quantise: {_gib(self.used_bytes - self.budget_bytes)} too much"
        longest, wanted = self.longest_that_fits_tokens, self.lengths.longest_tokens
        if not self.request_fits and longest >= wanted:
            return f"lower max_model_len to {longest:,} tokens"
        if not self.request_fits:
            return f"split over more devices or store KV in fp8: one request of {wanted:,} tokens has no room"
        if wanted > self.max_model_len_tokens:
            return f"raise max_model_len to {wanted:,} tokens, or leave out the longest requests"
        return ""

    @property
    def flags(self) -> tuple[str, ...]:
        """The `vllm serve` flags that give exactly this pool."""
        return self.engine.with_seqs(self.max_num_seqs).flags(blocks=self.blocks)

    def lines(self) -> tuple[str, ...]:
        """The arithmetic, for a terminal."""
        engine, mixers = self.engine, self.shape.mixers()
        kinds = ", ".join(f"{count} {mixer}" for mixer, count in mixers.items() if mixer != "none")
        per_block = f"{self.blocks:,} blocks x {self.block_bytes:,} B ({len(self.layout.groups)} group(s) of layers)"
        capacity, longest = self.capacity, self.blocks_of_longest
        mean, deviation = self.lengths.moments(self.layout.held_blocks)
        held = f"{mean:,.1f} ± {deviation:,.1f} blocks each"
        return (
            f"{self.shape.name or self.shape.model_type} ({kinds} layers) on {engine.devices} x {self.device}: "
            f"TP {engine.tp}, PP {engine.pp}, EP {engine.ep}; one device of stage {self.stage}",
            _line("memory", self.memory_bytes),
            _line("x utilization", self.budget_bytes, f"gpu_memory_utilization {engine.gpu_memory_utilization}"),
            _line("- weights", self.weights_bytes, engine.quant or self.shape.quantisation.name),
            _line("- activations", self.activation_bytes, f"{engine.max_num_batched_tokens:,} tokens a step"),
            _line("- CUDA graphs", self.graph_bytes),
            _line("- other", self.other_bytes, "CUDA context, NCCL"),
            _line("= KV pool", self.kv_pool_bytes, per_block),
            f"KV cache size {capacity.tokens:,} tokens: {capacity.max_concurrency:.2f} requests of "
            f"{self.max_model_len_tokens:,} tokens, {longest:,} blocks of {self.layout.block_tokens} tokens each",
            f"contexts of the workload: {self.contexts():,} on average, {self.contexts(sigmas=SIGMAS):,} with "
            f"{SIGMAS:g} sigma to spare ({held}); max_num_seqs {self.max_num_seqs:,}",
            *(f"assumed: {assumption}" for assumption in self.shape.assumptions),
            *([f"does not fit: {self.remedy}"] if self.remedy else []),
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"


def _line(label: str, size_bytes: int, note: str = "") -> str:
    return f"{label:<14}{_gib(size_bytes):>12}   {note}".rstrip()
