"""Public models: parameters against published totals, KV bytes per token, and the lookup by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner import ModelShape, PlannerError, PublicModel, public_models, shape_of_model

MODELS = {model.names[0]: model for model in public_models()}

# Bytes of KV cache per token in 16 bits, all layers, and where the figure (or its inputs) was published.
KV_BYTES = [
    ("Llama-3.1-8B", 131_072),  # 128 KiB: 2 x 8 heads x 128 x 2 B x 32 layers (model card)
    ("Llama-3.1-70B", 327_680),  # 320 KiB; "0.3 MB a token" in KV-transfer papers on Llama-70B with GQA
    ("Llama-3.1-405B", 516_096),  # DeepSeek-V3 ISCA 2025 paper (arXiv 2505.09343), table 1: 516.07 KB
    ("Qwen2.5-72B", 327_680),  # the same table: 327.68 KB
    ("DeepSeek-V3", 70_272),  # the same table: 70.272 KB (MLA)
    ("Mixtral-8x7B", 131_072),  # as Mistral-7B: 8 KV heads x 128, 32 layers (arXiv 2401.04088)
    ("Llama-2-7B", 524_288),  # 0.5 MB a token (multi-head): PagedAttention-era blogs and HF's KV cache notes
    ("OPT-13B", 819_200),  # PagedAttention paper (arXiv 2309.06180), section 3: 800 KB a token
    ("gpt-oss-120b", 73_728),  # vLLM's own start-up figure with all 36 layers whole
    ("Qwen3-32B", 262_144),  # 2 x 8 x 128 x 2 B x 64 layers (arXiv 2505.09388, table 1)
    ("SmolLM2-135M", 23_040),  # vLLM on CPU: 1 GiB = 364 blocks of 128 tokens
    ("Qwen3-Next-80B-A3B", 24_576),  # 12 of 48 layers keep KV (model card)
]


@pytest.mark.parametrize(
    "model", [model for model in MODELS.values() if model.params], ids=lambda model: model.names[0]
)
def test_parameters_equal_the_published_count(model: PublicModel) -> None:
    """Counts of the checkpoints' own tensors; of models with several encoders, the text model alone."""
    assert model.shape.params == model.params
    assert model.shape.params == sum(model.shape.params_by_part().values())


@pytest.mark.parametrize(("name", "kv_bytes"), KV_BYTES)
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    shape = MODELS[name].shape
    assert shape.kv_bytes_per_token() == kv_bytes
    assert shape.kv_bytes_per_token(dtype="fp8") * 2 == kv_bytes


# Billions, as their makers state them.
ACTIVE = [
    ("DeepSeek-V3", 37, 0.02),  # arXiv 2412.19437
    ("Kimi-K2", 32, 0.03),  # model card: 1 T in all, 32 B active
    ("Mixtral-8x7B", 12.9, 0.01),  # arXiv 2401.04088
    ("Qwen3-235B-A22B", 22, 0.02),
    ("Qwen3-30B-A3B", 3.3, 0.02),  # model card
    ("gpt-oss-120b", 5.1, 0.13),  # model card: 5.1 B, which leaves out one of two embedding matrices
    ("Llama-4-Maverick", 17, 0.02),
    ("Jamba-v0.1", 12, 0.02),  # arXiv 2403.19887
]


@pytest.mark.parametrize(("name", "billions", "tolerance"), ACTIVE)
def test_active_parameters(name: str, billions: float, tolerance: float) -> None:
    shape = MODELS[name].shape
    assert abs(shape.active_params_per_token / 1e9 - billions) <= tolerance * billions
    assert shape.active_params_per_token == sum(shape.params_by_part(active=True).values()) < shape.params


# Bytes of the published safetensors files, to the digits given there.
FILES = [
    ("gpt-oss-120b", 65.25e9),  # 60.8 GiB (OpenAI's model card)
    ("gpt-oss-20b", 13.76e9),  # 12.8 GiB
    ("Kimi-K2.5", 594e9),  # int4 experts, the rest in 16 bits
    ("Mixtral-8x7B", 93.4e9),
    ("Llama-3.1-405B", 811.7e9),
]


@pytest.mark.parametrize(("name", "size_bytes"), FILES)
def test_weight_bytes_equal_the_files(name: str, size_bytes: float) -> None:
    assert MODELS[name].shape.weight_bytes() == pytest.approx(size_bytes, rel=2e-3)


@pytest.mark.parametrize(
    ("asked", "name", "stored"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "Llama-3.1-70B", "bfloat16"),
        ("meta-llama/Meta-Llama-3.1-8B", "Llama-3.1-8B", "bfloat16"),
        ("llama3.1-8b", "Llama-3.1-8B", "bfloat16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "Llama-3.1-8B", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w4a16", "Llama-3.1-70B", "int4"),
        ("Qwen/Qwen3-32B-AWQ", "Qwen3-32B", "int4_awq"),
        ("Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B", "bfloat16"),
        ("DeepSeek-R1-0528", "DeepSeek-V3", "fp8_block"),
        ("nvidia/DeepSeek-R1-0528-FP4", "DeepSeek-V3", "nvfp4"),
        ("DeepSeek-V3/R1", "DeepSeek-V3", "fp8_block"),
        ("deepseek-ai/DeepSeek-V3-FP8", "DeepSeek-V3", "fp8_block"),
        ("openai/gpt-oss-120b", "gpt-oss-120b", "mxfp4"),
        ("MiniMaxAI/MiniMax-M2.5", "MiniMax-M2", "fp8_block"),
        ("google/gemma-3-27b-it", "Gemma-3-27B", "bfloat16"),
    ],
)
def test_names(asked: str, name: str, stored: str) -> None:
    shape = shape_of_model(asked)
    assert (shape.name, shape.quantisation.name) == (name, stored)


def test_every_shipped_name_is_found_and_says_where_it_is_from() -> None:
    for model in MODELS.values():
        assert model.source
        assert not model.shape.assumptions
        for name in model.names:
            assert shape_of_model(name) is model.shape or shape_of_model(name) == model.shape


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(PlannerError, match=r"Lama-3\.1-8B.*near are Llama-3\.1-8B") as caught:
        shape_of_model("Lama-3.1-8B")
    assert caught.value.remedy
    with pytest.raises(PlannerError, match=r"no shape of this name"):
        shape_of_model("zzz")


def test_a_folder_is_read(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    config |= {"vocab_size": 100, "intermediate_size": 128, "max_position_embeddings": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of_model(tmp_path).num_layers == 2
    assert isinstance(shape_of_model(str(tmp_path)), ModelShape)
