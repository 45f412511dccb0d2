"""A model's config.json as a ModelShape: the few integers that decide its memory and speed.

Understood: decoder-only transformers with full or sliding attention, multi-head, grouped-query (GQA) or
multi-head latent (MLA, DeepSeek) attention. A multimodal config is read through its `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from planner.types import PlannerError, dtype_bytes

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What config.json says. Counts are of one whole model, before any split over devices."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    dtype: str
    # MLA keeps one latent vector per token and layer in place of keys and values; None without MLA.
    mla_latent_dim: int | None = None
    num_experts: int = 1

    @property
    def params(self) -> int:
        """Parameters, from the shapes of a Llama-like block (gated MLP, RMS norms).

        Exact for Llama and Mistral; within 0.1 % for Qwen (its biases and per-head norms are left out); too
        high for an MLP without a gate. Raises PlannerError for MLA and experts: their shapes vary by family.
        """
        if self.mla_latent_dim is not None or self.num_experts > 1:
            raise PlannerError(
                "config.json",
                "model_type",
                self.model_type,
                "parameters of expert and MLA models are not counted from the config",
                "pass the exact byte count of the model's safetensors files",
            )
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        attention = 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        return embeddings + self.num_layers * (attention + mlp + norms) + self.hidden_size

    def weight_bytes(self, *, exact_bytes: int | None = None) -> int:
        """Bytes of the weights: `exact_bytes` if the caller has counted the files, else from `params`."""
        return self.params * dtype_bytes(self.dtype) if exact_bytes is None else exact_bytes

    def kv_bytes_per_token(self, *, dtype: str = "auto") -> int:
        """Bytes of KV cache per token over all layers, in `dtype` (`auto`: the model's own).

        Sliding windows are ignored, so for such models this is an upper bound. Raises PlannerError for an
        unknown number type.
        """
        number_bytes = dtype_bytes(self.dtype if dtype == "auto" else dtype, key="kv_cache_dtype")
        numbers_per_layer = self.mla_latent_dim or 2 * self.num_kv_heads * self.head_dim
        return self.num_layers * numbers_per_layer * number_bytes


def shape_from_config(config: Mapping[str, object], *, file: str = "config.json") -> ModelShape:
    """Reads a parsed config.json. Raises PlannerError with `file`, the key and its value for anything odd."""
    text_config = config.get("text_config")
    if "num_hidden_layers" not in config and isinstance(text_config, dict):
        config = text_config
    reader = _Reader(config=config, file=file)
    reader.refuse_layers_without_attention()
    hidden_size = reader.count("hidden_size")
    heads = reader.count("num_attention_heads")
    return ModelShape(
        model_type=reader.text("model_type", default="unknown"),
        num_layers=reader.count("num_hidden_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_kv_heads=_kv_heads(reader, heads),
        head_dim=_head_dim(reader, hidden_size, heads),
        vocab_size=reader.count("vocab_size"),
        intermediate_size=reader.count("intermediate_size"),
        max_position_embeddings=reader.count("max_position_embeddings"),
        tied_embeddings=config.get("tie_word_embeddings") is True,
        dtype=_dtype(reader),
        mla_latent_dim=_mla_latent_dim(reader),
        num_experts=max(reader.count(key, default=1) for key in EXPERT_KEYS),
    )


def _kv_heads(reader: _Reader, heads: int) -> int:
    kv_heads = reader.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"does not divide num_attention_heads = {heads}")
    return kv_heads


def _head_dim(reader: _Reader, hidden_size: int, heads: int) -> int:
    if reader.config.get("head_dim") is None and hidden_size % heads:
        raise reader.error("num_attention_heads", f"does not divide hidden_size = {hidden_size}, and no head_dim")
    return reader.count("head_dim", default=hidden_size // heads)


def _mla_latent_dim(reader: _Reader) -> int | None:
    """DeepSeek-V2 §2.1: one compressed vector for keys and values, and one rotary key shared by all heads."""
    if reader.config.get("kv_lora_rank") is None:
        return None
    return reader.count("kv_lora_rank") + reader.count("qk_rope_head_dim")


def _dtype(reader: _Reader) -> str:
    """transformers 5 writes `dtype`, older ones `torch_dtype`; without either vLLM serves in 16 bits."""
    key = "dtype" if reader.config.get("dtype") is not None else "torch_dtype"
    dtype = reader.text(key, default="bfloat16").removeprefix("torch.")
    dtype_bytes(dtype, file=reader.file, key=key)
    return dtype


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Typed access to one config; every refusal names the file, the key and the value."""

    config: Mapping[str, object]
    file: str

    def count(self, key: str, *, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not _is_count(value):
            raise self.error(key, "a positive whole number is needed")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a text is needed")
        return value

    def refuse_layers_without_attention(self) -> None:
        layers = self.config.get("layer_types")
        odd = [layer for layer in layers if layer not in ATTENTION_LAYERS] if isinstance(layers, list) else []
        if odd:
            raise PlannerError(
                self.file,
                "layer_types",
                odd[0],
                "only attention layers are planned",
                "choose a model whose layers all use full or sliding attention",
            )

    def error(self, key: str, problem: str) -> PlannerError:
        remedy = f"correct {key} in {self.file}, or fetch the model's original config.json"
        return PlannerError(self.file, key, self.config.get(key), problem, remedy)


def _is_count(value: object) -> TypeGuard[int]:
    # In Python True is an int; in a config it is a mistake.
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
