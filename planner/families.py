"""What the code of a model family has beyond what its config.json says: biases, norms, gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Family:
    """The build of one layer. The defaults are Llama's."""

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True
    expert_bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False  # one more output that weighs the shared expert
    qk_norm: str = ""  # "head": one norm of head_dim; "full": over all heads
    sinks: bool = False  # one learned number per head
    gated_attention: bool = False  # queries twice as wide, half of them a gate
    norms: int = 2  # per layer with mixer and MLP
    norm_bias: bool = False
    embedding_norm: bool = False
    head_bias: bool = False
    learned_positions: bool = False
    extra_positions: int = 0  # learned positions beyond max_position_embeddings
    mamba_norms: bool = False  # Jamba's norms of dt, B and C
    tied: bool = False  # whether embeddings are tied where the config does not say


LLAMA = Family()

_QWEN2 = replace(LLAMA, qkv_bias=True)
_QWEN3 = replace(LLAMA, qk_norm="head")
_DEEPSEEK = replace(LLAMA, router_bias=True)
_CLASSIC = Family(qkv_bias=True, out_bias=True, mlp_bias=True, gated_mlp=False, norm_bias=True)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": LLAMA,
        "mistral": LLAMA,
        "mistral3": LLAMA,
        "ministral": LLAMA,
        "mixtral": LLAMA,
        "smollm3": LLAMA,
        "granite": LLAMA,
        "phi3": LLAMA,
        "gemma": replace(LLAMA, tied=True),
        "llama4": LLAMA,
        "llama4_text": LLAMA,
        "qwen2": _QWEN2,
        "qwen2_moe": replace(_QWEN2, shared_gate=True),
        "qwen3": _QWEN3,
        "qwen3_moe": _QWEN3,
        "qwen3_next": replace(_QWEN3, shared_gate=True, gated_attention=True),
        "qwen3_5_text": replace(_QWEN3, gated_attention=True),
        "qwen3_5_moe_text": replace(_QWEN3, shared_gate=True, gated_attention=True),
        "gemma2": replace(LLAMA, norms=4, tied=True),
        "gemma3": replace(_QWEN3, norms=4, tied=True),
        "gemma3_text": replace(_QWEN3, norms=4, tied=True),
        "deepseek_v2": LLAMA,
        "deepseek_v3": _DEEPSEEK,
        "kimi_k2": _DEEPSEEK,
        "kimi_k25": _DEEPSEEK,
        "glm4_moe": _DEEPSEEK,
        "minimax_m2": replace(LLAMA, qk_norm="full", router_bias=True),
        "gpt_oss": replace(LLAMA, qkv_bias=True, out_bias=True, expert_bias=True, router_bias=True, sinks=True),
        "phi": replace(_CLASSIC, norms=1, head_bias=True),
        "opt": replace(_CLASSIC, learned_positions=True, extra_positions=2, tied=True),
        "gpt2": replace(_CLASSIC, learned_positions=True, tied=True),
        "gpt_neox": _CLASSIC,
        "bloom": replace(_CLASSIC, embedding_norm=True, tied=True),
        "starcoder2": replace(_CLASSIC, tied=True),
        "nemotron": replace(LLAMA, gated_mlp=False, norm_bias=True),
        "nemotron_h": replace(LLAMA, gated_mlp=False, router_bias=True, norms=1),
        "jamba": replace(LLAMA, mamba_norms=True),
        "bamba": LLAMA,
        "mamba2": replace(LLAMA, norms=1),
    }
)
