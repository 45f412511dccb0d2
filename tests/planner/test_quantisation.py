"""Weight bytes under each format, and each maker's way of declaring it."""

from __future__ import annotations

import pytest

from planner import ModelShape, PlannerError, public_models, quantisation, shape_from_config

LLAMA_8B = next(model.shape for model in public_models() if model.names[0] == "Llama-3.1-8B")
# All matrices of Llama-3.1-8B's layers; embeddings, head and norms stay in 16 bits.
LINEAR, REST = 6_979_321_856, 8_030_261_248 - 6_979_321_856


@pytest.mark.parametrize(
    ("name", "bytes_per_weight"),
    [
        ("fp32", 4.0),
        ("bf16", 2.0),
        ("fp16", 2.0),
        ("fp8", 1.0),
        ("fp8_block", 1 + 4 / 128**2),
        ("awq", 0.5 + 2 / 128 + 0.5 / 128),
        ("w4a16", 0.5 + 2 / 128),
        ("nvfp4", 0.5 + 1 / 16),
        ("mxfp4", 0.5 + 1 / 32),
    ],
)
def test_bytes_per_weight(name: str, bytes_per_weight: float) -> None:
    expected = LINEAR * bytes_per_weight + 2 * REST
    assert LLAMA_8B.weight_bytes(quant=name) == pytest.approx(expected, rel=1e-6)


def test_row_scales_cost_four_bytes_a_row() -> None:
    rows = 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    assert LLAMA_8B.weight_bytes(quant="w8a8") == LINEAR + 4 * rows + 2 * REST


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(PlannerError, match="not a weight format"):
        quantisation("int3")


def compressed(**weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


W8A8 = compressed(num_bits=8, type="int", strategy="channel")
W8A8["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}  # type: ignore[index]


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fbgemm_fp8"}, "fp8_channel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4_awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8_w8a16"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8_w8a16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4_bitsandbytes"),
        (compressed(num_bits=8, type="float", strategy="channel"), "fp8_channel"),
        (compressed(num_bits=8, type="float", strategy="block", block_structure=[128, 128]), "fp8_block"),
        (compressed(num_bits=8, type="int", strategy="channel"), "int8_w8a16"),
        (W8A8, "int8"),
        (compressed(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True), "int4"),
        (compressed(num_bits=4, type="float", group_size=16), "nvfp4"),
        (compressed(num_bits=4, type="float", group_size=32), "mxfp4"),
    ],
)
def test_declarations(declared: dict[str, object], name: str) -> None:
    assert shape(declared).quantisation.name == name


@pytest.mark.parametrize(
    "declared",
    [
        {"quant_method": "magic"},
        {"quant_method": "modelopt", "quant_algo": "W1"},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "compressed-tensors"},
        compressed(num_bits=6, type="int"),
    ],
)
def test_odd_declarations_are_refused(declared: dict[str, object]) -> None:
    with pytest.raises(PlannerError) as caught:
        shape(declared)
    assert caught.value.remedy
    assert caught.value.file == "config.json"


@pytest.mark.parametrize(
    "pattern",
    [
        "model.layers.1",
        "model.layers.1.*",
        "re:.*layers\\.1\\..*",
        "model.language_model.layers.1",
        "language_model.model.layers.1",
    ],
)
def test_ignored_modules_keep_their_dtype(pattern: str) -> None:
    """Half of a model of two layers stays in 16 bits, whichever way its maker says so."""
    whole = shape({"quant_method": "fp8"}).weight_bytes()
    plain = shape(None).weight_bytes()
    half = shape({"quant_method": "fp8", "modules_to_not_convert": [pattern]}).weight_bytes()
    assert half - whole == pytest.approx((plain - whole) / 2, rel=1e-3)


def shape(declared: dict[str, object] | None) -> ModelShape:
    config: dict[str, object] = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 1024}
    config |= {"num_attention_heads": 16, "vocab_size": 1000, "intermediate_size": 4096}
    config |= {"max_position_embeddings": 256, "quantization_config": declared}
    return shape_from_config(config)
