"""config.json -> ModelShape: reads every family's spelling of the same few facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.families import FAMILIES, LLAMA, Family
from planner.layers import layers_of
from planner.models import STATE, Experts, Mixer, Mla, ModelShape, State
from planner.quantisations import Quantisation, quantisation
from planner.quantised_config import quantised
from planner.reader import Reader
from planner.types import dtype_bytes

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
PER_TOKEN_KEYS = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token")


def shape_from_config(config: Mapping[str, object], *, file: str = "config.json", name: str = "") -> ModelShape:
    """Reads a parsed config.json. Raises PlannerError with `file`, the key and its value for anything odd.

    A multimodal config is read through its `text_config`; its encoders are not part of the shape.
    """
    outer = Reader(config=config, file=file)
    text_config = config.get("text_config")
    reader = outer
    if "num_hidden_layers" not in config and isinstance(text_config, dict):
        reader = Reader(config=text_config, file=file)
    model_type = reader.text("model_type", default=outer.text("model_type", default="unknown"))
    family, assumptions = _family(reader, model_type)
    hidden_size = reader.count(reader.first("hidden_size", "n_embd", "n_embed"))
    heads = reader.count(reader.first("num_attention_heads", "n_head"))
    mla, experts = _mla(reader), _experts(reader, model_type)
    layers = layers_of(reader, model_type, has_experts=experts is not None)
    mixers = {layer.mixer for layer in layers}
    return ModelShape(
        model_type=model_type,
        layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_kv_heads=heads if mla else _kv_heads(reader, heads),
        head_dim=_head_dim(reader, hidden_size, heads),
        vocab_size=reader.count("vocab_size"),
        intermediate_size=_dense_width(reader, hidden_size),
        max_position_embeddings=reader.count("max_position_embeddings"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=family.tied),
        dtype=_dtype(reader),
        mla=mla,
        experts=experts,
        state=_state(reader, hidden_size, mixers) if mixers & STATE else None,
        sliding_window=_window(reader) if mixers & {"sliding", "chunked"} else None,
        quantisation=_quantisation(outer, reader),
        family=family,
        name=name,
        assumptions=assumptions,
    )


def _family(reader: Reader, model_type: str) -> tuple[Family, tuple[str, ...]]:
    """The family's build, with what the config itself says about biases; an unknown one is taken for a Llama."""
    family = FAMILIES.get(model_type)
    assumptions = () if family else (f"model_type {model_type!r} is not known: its layers are counted like Llama's",)
    family = family or LLAMA
    bias = reader.flag(reader.first("attention_bias", "use_qkv_bias"), default=family.qkv_bias)
    # Qwen2, Qwen3 and GLM have no bias on the way out even where they have one on the way in.
    out_bias = bias if family == LLAMA else family.out_bias
    mlp_bias = reader.flag("mlp_bias", default=family.mlp_bias)
    return replace(family, qkv_bias=bias, out_bias=out_bias, mlp_bias=mlp_bias), assumptions


def _kv_heads(reader: Reader, heads: int) -> int:
    if reader.flag("multi_query", default=False):
        return 1
    kv_heads = reader.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"does not divide num_attention_heads = {heads}")
    return kv_heads


def _head_dim(reader: Reader, hidden_size: int, heads: int) -> int:
    key = reader.first("head_dim", "attention_head_dim")
    if not reader.has(key) and hidden_size % heads:
        raise reader.error("num_attention_heads", f"does not divide hidden_size = {hidden_size}, and no head_dim")
    return reader.count(key, default=hidden_size // heads)


def _dense_width(reader: Reader, hidden_size: int) -> int:
    """Llama 4 has one width for its dense layers and another for its experts. GPT-2 and BLOOM imply four times."""
    if reader.has("n_embd") or reader.text("model_type", default="") == "bloom":
        return reader.count("n_inner", default=4 * hidden_size)
    return reader.count(reader.first("intermediate_size_mlp", "intermediate_size", "ffn_dim"))


def _mla(reader: Reader) -> Mla | None:
    if not reader.has("kv_lora_rank"):
        return None
    return Mla(
        q_lora_rank=reader.count("q_lora_rank") if reader.has("q_lora_rank") else None,
        kv_lora_rank=reader.count("kv_lora_rank"),
        qk_nope_head_dim=reader.count("qk_nope_head_dim"),
        qk_rope_head_dim=reader.count("qk_rope_head_dim"),
        v_head_dim=reader.count("v_head_dim"),
    )


def _experts(reader: Reader, model_type: str) -> Experts | None:
    count = max(reader.whole(key) for key in EXPERT_KEYS)
    if count <= 1:
        return None
    per_token_key = reader.first(*PER_TOKEN_KEYS)
    per_token = reader.count(per_token_key)
    if per_token > count:
        raise reader.error(per_token_key, f"is more than the {count} experts")
    width = reader.count(reader.first("moe_intermediate_size", "expert_intermediate_size", "intermediate_size"))
    shared_count = (
        1 if model_type.startswith("llama4") else reader.whole(reader.first("n_shared_experts", "num_shared_experts"))
    )
    shared_width_key = reader.first("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    if reader.has("shared_expert_intermediate_size"):
        shared_count = 1
    return Experts(
        count=count,
        per_token=per_token,
        intermediate_size=width,
        shared_count=shared_count,
        shared_intermediate_size=shared_count * reader.whole(shared_width_key, default=width),
    )


def _window(reader: Reader) -> int:
    return reader.count(reader.first("sliding_window", "attention_chunk_size"))


def _state(reader: Reader, hidden_size: int, mixers: set[Mixer]) -> State:
    kinds = mixers & STATE
    if len(kinds) > 1:
        raise reader.error("layer_types", "only one kind of recurrent layer per model is planned")
    state_dtype = reader.text(reader.first("mamba_ssm_cache_dtype", "mamba_ssm_dtype"), default="auto")
    if "linear" in kinds:
        return State(
            key_heads=reader.count("linear_num_key_heads"),
            key_dim=reader.count("linear_key_head_dim"),
            value_heads=reader.count("linear_num_value_heads"),
            value_dim=reader.count("linear_value_head_dim"),
            conv_kernel=reader.count("linear_conv_kernel_dim"),
            dtype=state_dtype,
        )
    width = reader.count(reader.first("ssm_state_size", "mamba_d_state", "state_size"))
    kernel = reader.count(reader.first("conv_kernel", "mamba_d_conv"))
    if "mamba1" in kinds:
        inner = reader.count("mamba_expand", default=2) * hidden_size
        rank = reader.count("mamba_dt_rank", default=-(-hidden_size // 16))
        return State(
            key_heads=1,
            key_dim=width,
            value_heads=inner,
            value_dim=1,
            conv_kernel=kernel,
            dt_rank=rank,
            dtype=state_dtype,
        )
    return State(
        key_heads=reader.count(reader.first("n_groups", "mamba_n_groups")),
        key_dim=width,
        value_heads=reader.count(reader.first("mamba_num_heads", "mamba_n_heads", "num_heads")),
        value_dim=reader.count(reader.first("mamba_head_dim", "mamba_d_head")),
        conv_kernel=kernel,
        dtype=state_dtype,
    )


def _dtype(reader: Reader) -> str:
    """transformers 5 writes `dtype`, older ones `torch_dtype`; without either vLLM serves in 16 bits."""
    key = reader.first("dtype", "torch_dtype")
    dtype = reader.text(key, default="bfloat16").removeprefix("torch.")
    dtype_bytes(dtype, file=reader.file, key=key)
    return dtype


def _quantisation(outer: Reader, reader: Reader) -> Quantisation:
    """Multimodal configs declare it outside the text model's part."""
    holder = reader if reader.has("quantization_config") else outer
    if holder.has("quantization_config"):
        return quantised(holder.section("quantization_config"))
    return quantisation(_dtype(reader), file=reader.file, key="dtype")
