"""config.json -> ModelShape, against the published numbers of public models."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import PlannerError, folder_weight_bytes, read_shape, shape_from_config
from planner.files import tensor_bytes, weight_files


def config(**changes: object) -> dict[str, object]:
    """SmolLM2-135M, with changes; a change to None removes the key."""
    base: dict[str, object] = {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def dense(
    layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocab: int, **more: object
) -> dict[str, object]:
    return config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocab,
        **({"tie_word_embeddings": False} | more),
    )


# Shapes from each model's published config.json; parameters from its model card.
PUBLISHED = [
    ("SmolLM2-135M", config(), 23_040, 134_515_008),
    ("Llama-3.1-8B", dense(32, 4096, 32, 8, 14336, 128256), 131_072, 8_030_261_248),
    ("Llama-3.1-70B", dense(80, 8192, 64, 8, 28672, 128256), 327_680, 70_553_706_496),
    ("Mistral-7B-v0.1", dense(32, 4096, 32, 8, 14336, 32000), 131_072, 7_241_732_096),
    ("Qwen2.5-7B", dense(28, 3584, 28, 4, 18944, 152064), 57_344, 7_615_616_512),
    ("Qwen3-8B", dense(36, 4096, 32, 8, 12288, 151936, head_dim=128), 147_456, 8_190_735_360),
]


@pytest.mark.parametrize(("name", "published", "kv_bytes", "params"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_models(name: str, published: dict[str, object], kv_bytes: int, params: int) -> None:
    shape = shape_from_config(published)
    assert shape.kv_bytes_per_token() == kv_bytes
    assert shape.kv_bytes_per_token(dtype="fp8") * 2 == kv_bytes
    exact = name.startswith(("Smol", "Llama", "Mistral"))
    assert shape.params == params if exact else abs(shape.params - params) < params / 1000
    assert shape.weight_bytes() == 2 * shape.params
    assert shape.weight_bytes(exact_bytes=7) == 7


def test_defaults_and_spellings() -> None:
    assert shape_from_config(config(num_key_value_heads=None)).num_kv_heads == 9
    assert shape_from_config(config(dtype=None)).dtype == "bfloat16"
    assert shape_from_config(config(dtype=None, torch_dtype="torch.float32")).dtype == "float32"
    nested = {"text_config": config(), "vision_config": {}}
    assert shape_from_config(nested) == shape_from_config(config())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads"),
        ({"dtype": "int3"}, "dtype"),
        ({"dtype": 16}, "dtype"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"kv_lora_rank": 512}, "qk_nope_head_dim"),
        ({"num_hidden_layers": 3000}, "num_hidden_layers"),
        ({"num_experts": 8}, "num_experts_per_tok"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "magic"}}, "quant_method"),
        ({"num_experts": "many"}, "num_experts"),
    ],
)
def test_odd_fields_name_file_key_and_remedy(changes: dict[str, object], key: str) -> None:
    with pytest.raises(PlannerError) as caught:
        shape_from_config(config(**changes), file="a/config.json")
    assert caught.value.key == key
    assert key in str(caught.value)
    assert "a/config.json" in str(caught.value)
    assert caught.value.remedy
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@given(layers=st.integers(1, 200), kv_heads=st.sampled_from([1, 3, 9]), head_dim=st.integers(1, 512))
def test_kv_grows_with_every_part(layers: int, kv_heads: int, head_dim: int) -> None:
    shape = shape_from_config(config(num_hidden_layers=layers, num_key_value_heads=kv_heads, head_dim=head_dim))
    deeper = shape_from_config(config(num_hidden_layers=layers + 1, num_key_value_heads=kv_heads, head_dim=head_dim))
    assert 0 < shape.kv_bytes_per_token() < deeper.kv_bytes_per_token()
    assert shape.kv_bytes_per_token(dtype="float32") == 2 * shape.kv_bytes_per_token(dtype="bfloat16")


@given(st.dictionaries(st.sampled_from(sorted(config())), st.none() | st.booleans() | st.integers() | st.text()))
def test_any_config_gives_a_shape_or_a_typed_error(changes: dict[str, object]) -> None:
    try:
        shape = shape_from_config(config(**changes))
    except PlannerError as error:
        assert error.remedy
    else:
        assert shape.params > 0


def write_safetensors(path: Path, data_bytes: int, *, cut_bytes: int = 0) -> None:
    tensor = {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data_bytes - cut_bytes))


def test_folder_is_read_and_weights_are_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    write_safetensors(tmp_path / "model.safetensors", 40)
    write_safetensors(tmp_path / "consolidated.safetensors", 40)
    assert read_shape(tmp_path).num_layers == 30
    assert folder_weight_bytes(tmp_path) == 40


def test_an_index_names_the_shards(tmp_path: Path) -> None:
    for shard in ("a.safetensors", "b.safetensors", "stray.safetensors"):
        write_safetensors(tmp_path / shard, 10)
    weight_map = {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert folder_weight_bytes(tmp_path) == 20


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"version https://git-lfs", struct.pack("<Q", 2) + b"{}", b"\0" * 99]
)
def test_foreign_weight_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(PlannerError, match="not a safetensors file"):
        tensor_bytes(path)


def test_cut_off_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, 100, cut_bytes=1)
    with pytest.raises(PlannerError, match="cut off"):
        tensor_bytes(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_bad_config_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlannerError, match=r"config\.json"):
        read_shape(tmp_path)
    with pytest.raises(PlannerError, match="cannot be read"):
        read_shape(tmp_path / "absent")
