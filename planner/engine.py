"""One engine as the planner sees it: how it is split, what it may batch, and the vLLM flags that say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.kv_blocks import GPU_BLOCK_SIZE_TOKENS, KvLayout, in_flight_tokens, kv_layout
from planner.models import ModelShape
from planner.types import PlannerError

# vLLM 0.32's defaults on GPUs of 70 GiB and more (`engine/arg_utils.py`, `config/cache.py`).
GPU_MEMORY_UTILIZATION = 0.92
MAX_NUM_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 1024


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The settings of one engine that decide its memory. `ep` devices share out whole experts; at 1 `tp` cuts each.

    An `ep` beyond `tp` means `ep / tp` data-parallel ranks, each with its own attention weights and KV cache.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    quant: str | None = None  # None: as the checkpoint is
    kv_dtype: str = "auto"
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    max_model_len_tokens: int | None = None  # None: the model's own
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    max_num_seqs: int | None = None  # None: as many as the KV cache holds
    block_size_tokens: int = GPU_BLOCK_SIZE_TOKENS
    prefix_caching: bool = True
    hybrid_kv_cache: bool = True

    def __post_init__(self) -> None:
        counts = (
            "tp",
            "pp",
            "ep",
            "max_model_len_tokens",
            "max_num_batched_tokens",
            "max_num_seqs",
            "block_size_tokens",
        )
        for key in counts:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise PlannerError("settings", key, value, "must be at least 1", f"raise {key}")
        if not 0 < self.gpu_memory_utilization <= 1:
            value = self.gpu_memory_utilization
            raise PlannerError("settings", "gpu_memory_utilization", value, "is no fraction", "choose up to 1")
        if self.ep > 1 and self.ep % self.tp:
            raise PlannerError("settings", "ep", self.ep, f"is not a multiple of tp = {self.tp}", "choose another ep")

    @property
    def devices(self) -> int:
        """Devices of one engine: each data-parallel rank has `tp` of them in each stage."""
        return max(self.tp, self.ep) * self.pp

    def max_len(self, shape: ModelShape) -> int:
        return self.max_model_len_tokens or shape.max_position_embeddings

    @property
    def in_flight_tokens(self) -> int:
        return in_flight_tokens(self.max_num_batched_tokens, pp=self.pp)

    def layout(self, shape: ModelShape) -> KvLayout:
        """The KV blocks of this engine. Raises PlannerError."""
        return kv_layout(
            shape,
            kv_dtype=self.kv_dtype,
            block_size_tokens=self.block_size_tokens,
            tp=self.tp,
            pp=self.pp,
            prefix_caching=self.prefix_caching,
            hybrid=self.hybrid_kv_cache,
        )

    def with_seqs(self, max_num_seqs: int) -> Engine:
        return replace(self, max_num_seqs=max_num_seqs)

    def flags(self, *, blocks: int) -> tuple[str, ...]:
        """The command-line flags of `vllm serve` for this engine with a pool of `blocks`."""
        pairs: list[tuple[str, object]] = [("--tensor-parallel-size", self.tp)]
        if self.pp > 1:
            pairs.append(("--pipeline-parallel-size", self.pp))
        if self.ep > self.tp:
            pairs.append(("--data-parallel-size", self.ep // self.tp))
        if self.max_model_len_tokens is not None:
            pairs.append(("--max-model-len", self.max_model_len_tokens))
        if self.max_num_seqs is not None:
            pairs.append(("--max-num-seqs", self.max_num_seqs))
        pairs += [
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--kv-cache-dtype", self.kv_dtype),
            ("--gpu-memory-utilization", self.gpu_memory_utilization),
            ("--num-gpu-blocks-override", blocks),
            ("--block-size", self.block_size_tokens),
        ]
        switches = ["--enable-expert-parallel"] if self.ep > 1 else []
        switches += [] if self.prefix_caching else ["--no-enable-prefix-caching"]
        switches += [] if self.hybrid_kv_cache else ["--disable-hybrid-kv-cache-manager"]
        return (*(text for flag, value in pairs for text in (flag, str(value))), *switches)
