"""The memory report: its arithmetic by hand, and laws that hold for all inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import MemoryReport, PlannerError, memory_report, shape_from_config
from planner.memory import ENGINE_OVERHEAD_BYTES
from planner.types import GIB

SMOLLM2 = shape_from_config(
    {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
)
SMALL = MemoryReport(
    engines=2,
    weights_bytes=100,
    kv_cache_bytes=1000,
    kv_bytes_per_token=10,
    max_model_len_tokens=80,
    available_bytes=2500,
    block_size_tokens=10,
    overhead_bytes=50,
    other_bytes=200,
)

sizes = st.integers(1, 10**13)
reports = st.builds(
    MemoryReport,
    engines=st.integers(1, 1000),
    weights_bytes=sizes,
    kv_cache_bytes=sizes,
    kv_bytes_per_token=st.integers(1, 10**7),
    max_model_len_tokens=st.integers(1, 10**6),
    available_bytes=sizes,
    block_size_tokens=st.sampled_from([1, 16, 128]),
    overhead_bytes=sizes,
    other_bytes=sizes,
)


def test_by_hand() -> None:
    assert SMALL.kv_blocks == 10
    assert SMALL.usable_blocks == 9
    assert SMALL.blocks_per_request == 8
    assert SMALL.engine_bytes == 1150
    assert SMALL.needed_bytes == 2500
    assert SMALL.max_engines == 2
    assert SMALL.fits
    assert SMALL.remedy == ""


@pytest.mark.parametrize(
    ("report", "advice"),
    [
        (replace(SMALL, available_bytes=2499), "at most 1 engines"),
        (replace(SMALL, available_bytes=0), "shrink the KV cache"),
        (replace(SMALL, max_model_len_tokens=91), "lower max_model_len to 90 tokens"),
        (replace(SMALL, kv_cache_bytes=99), "raise the KV cache"),
    ],
)
def test_what_does_not_fit_comes_with_advice(report: MemoryReport, advice: str) -> None:
    assert not report.fits
    assert advice in report.remedy


def test_agrees_with_vllm() -> None:
    """vLLM 0.32.0 on CPU with 1 GiB of KV cache logs "CPU KV cache size: 46,592 tokens" for this model."""
    report = memory_report(SMOLLM2, engines=2, kv_cache_bytes=GIB, max_model_len_tokens=2048, available_bytes=22 * GIB)
    assert report.kv_blocks * report.block_size_tokens == 46_592
    assert report.weights_bytes == 269_030_016
    assert report.overhead_bytes == ENGINE_OVERHEAD_BYTES
    assert report.fits


def test_lines_show_the_arithmetic() -> None:
    text = "\n".join(
        memory_report(
            SMOLLM2, engines=2, kv_cache_bytes=GIB, max_model_len_tokens=2048, available_bytes=4 * GIB
        ).lines()
    )
    for part in ("0.25 GiB", "364 blocks x 128 tokens x 23,040 B", "2.90 GiB", "5.80 GiB", "1.80 GiB short"):
        assert part in text
    assert "16 of 363 usable blocks, fits" in text


@pytest.mark.parametrize("field", ["engines", "weights_bytes", "kv_cache_bytes", "block_size_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_odd_inputs_are_refused(field: str, value: int) -> None:
    with pytest.raises(PlannerError, match=field):
        replace(SMALL, **{field: value})


@given(report=reports, more=sizes)
def test_more_kv_never_gives_fewer_blocks(report: MemoryReport, more: int) -> None:
    bigger = replace(report, kv_cache_bytes=report.kv_cache_bytes + more)
    assert bigger.kv_blocks >= report.kv_blocks
    assert bigger.request_fits >= report.request_fits
    assert bigger.host_fits <= report.host_fits


@given(report=reports)
def test_blocks_never_exceed_their_bytes(report: MemoryReport) -> None:
    assert report.kv_blocks * report.block_bytes <= report.kv_cache_bytes < (report.kv_blocks + 1) * report.block_bytes


@given(report=reports)
def test_max_engines_is_the_edge(report: MemoryReport) -> None:
    assert report.host_fits == (report.engines <= report.max_engines)
    assert report.fits == (report.remedy == "")


@given(report=reports, more=sizes)
def test_more_memory_never_hurts(report: MemoryReport, more: int) -> None:
    assert replace(report, available_bytes=report.available_bytes + more).fits >= report.fits
