"""`ferry plan memory`: the report of the library, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner import Engine, context_lengths, device, gpu_memory_report, shape_of_model
from planner.types import GIB
from tests.planner.command import plan, refused, tree_of

LLAMA = ("memory", "--model", "Llama-3.1-8B", "--system", "l40s", "--max-model-len", "8192")


def test_the_report_is_the_librarys(tmp_path: Path) -> None:
    told = plan(*LLAMA, "--tp", "2", "--isl", "2000", "--osl", "300", "--json")
    assert told.exit_code == 0, told.output
    report = tree_of(told)["report"]
    l40s = device("l40s")
    same = gpu_memory_report(
        shape_of_model("Llama-3.1-8B"),
        Engine(tp=2, max_model_len_tokens=8192),
        context_lengths((2000, 300)),
        memory_bytes=l40s.memory_bytes,
        device=l40s.label,
    )
    assert report["blocks"] == same.blocks and report["max_num_seqs"] == same.max_num_seqs
    assert report["kv_cache_tokens"] == same.capacity.tokens and report["contexts_mean"] == same.contexts()
    assert report["vllm_flags"] == list(same.flags)
    used = ("weights_bytes", "activation_bytes", "graph_bytes", "other_bytes", "kv_pool_bytes")
    assert sum(report[key] for key in used) == report["budget_bytes"]


def test_people_see_the_arithmetic_the_degrees_and_the_flags() -> None:
    told = plan(*LLAMA)
    assert told.exit_code == 0
    for word in ("- weights", "= KV pool", "KV cache size", "contexts of the workload", "--num-gpu-blocks-override"):
        assert word in told.stdout
    assert told.stdout.count("yes") > 4  # the degrees


def test_without_a_degree_the_fewest_devices_that_fit_are_shown() -> None:
    tree = tree_of(
        plan("memory", "--model", "Llama-3.1-70B", "--system", "h100_sxm", "--max-model-len", "8192", "--json")
    )
    fitting = [one for one in tree["degrees"] if one["fits"]]
    assert tree["report"]["devices"] == min(one["tp"] * one["pp"] for one in fitting) > 1
    assert all(one["reason"] for one in tree["degrees"] if not one["fits"])


def test_what_does_not_fit_is_exit_code_3_with_the_remedy() -> None:
    told = plan("memory", "--model", "Llama-3.1-70B", "--system", "l4", "--total-gpus", "4", "--json")
    assert told.exit_code == 3
    assert tree_of(told)["fits"] is False
    told = plan("memory", "--model", "Llama-3.1-70B", "--system", "h100_sxm", "--tp", "1")
    assert told.exit_code == 3 and "does not fit: split over more devices or quantise" in told.stdout


def test_a_workload_gives_the_lengths(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "streams: {a: {lengths: {kind: constant, isl: 4000, osl: 100}, arrivals: {kind: poisson, rate_rps: 1}}}"
    )
    by_file = tree_of(plan(*LLAMA, "--workload", str(file), "--json"))["report"]
    by_flags = tree_of(plan(*LLAMA, "--isl", "4000", "--osl", "100", "--json"))["report"]
    assert by_file["contexts_mean"] == by_flags["contexts_mean"]


def test_a_folder_counts_its_own_weights(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [512], "data_offsets": [0, 1024]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1024))
    report = tree_of(plan("memory", "--model", str(tmp_path), "--system", "l4", "--json"))["report"]
    assert report["weights_bytes"] == 1024 and report["kv_pool_bytes"] > 10 * GIB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "Lama-3.1-8B", "--system", "l40s"), ("model is 'Lama-3.1-8B'", "Llama-3.1-8B")),
        (("--model", "Llama-3.1-8B", "--system", "l41s"), ("system is 'l41s'", "l40s")),
        (
            ("--model", "Qwen3-8B", "--system", "ascend_910b3", "--quant", "fp8"),
            ("quant is 'fp8'", "no fp8 unit", "int8"),
        ),
        (("--model", "Llama-3.1-8B", "--system", "l40s", "--quant", "int3"), ("quant is 'int3'", "int4")),
        (("--model", "Llama-3.1-8B", "--system", "l40s", "--kv-cache-dtype", "int2"), ("int2", "fp8")),
        (("--model", "Llama-3.1-8B", "--system", "l40s", "--tp", "3"), ("tp is 3", "attention heads")),
        (("--model", "Llama-3.1-8B", "--system", "l40s", "--gpu-memory-utilization", "1.5"), ("1.5", "no fraction")),
        (("--model", "Llama-3.1-8B", "--system", "l40s", "--workload", "none.yaml"), ("none.yaml", "cannot be read")),
        (("--model", "Llama-3.1-8B", "--system", "h100_sxm:9g"), ("h100_sxm:9g", "no such fraction")),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(plan("memory", *arguments), *words)


def test_an_odd_config_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "wide"}))
    refused(plan("memory", "--model", str(tmp_path), "--system", "l40s"), "config.json", "hidden_size", "wide")


def test_a_missing_figure_of_a_device_is_asked_for(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("devices: {mine: {bf16_tflops: 100, memory_gib: 40, memory_tb_s: 1}}")
    told = plan("memory", "--model", "Llama-3.1-8B", "--system", "mine", "--devices", str(own))
    refused(told, "mine.devices_per_node", "missing", "add mine.devices_per_node")
