"""The performance model's caps are those of the planner's own memory report, to the block."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import Engine as EngineSettings
from planner import PlannerError, context_lengths, gpu_memory_report, read_devices, shape_of_model
from planner.perf.limits import limits_of
from planner.perf.question import Question
from planner.perf.work import Layout, storage

DEVICES = read_devices()


def question(model: str = "Llama-3.1-70B", system: str = "h100_sxm", **changes: object) -> Question:
    shape = shape_of_model(model)
    plain = Question(
        shape=shape, device=DEVICES.device(system), layout=Layout(tp=4), stored=storage(shape, None),
        kv_dtype="auto", isl=1000.0, osl=400.0, kind="concurrency", load=8.0,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "system", "layout"),
    [
        ("Llama-3.1-70B", "h100_sxm", Layout(tp=4)),
        ("Llama-3.1-70B", "h100_sxm", Layout(tp=2, pp=2)),
        ("gpt-oss-120b", "h100_sxm", Layout(tp=2)),
        ("DeepSeek-V3", "h200_sxm", Layout(tp=8, ep=8)),
        ("gemma-3-27b", "a100_sxm", Layout(tp=2)),
        ("Jamba-v0.1", "h200_sxm", Layout(tp=2)),
        ("Llama-3.1-8B", "l4", Layout(tp=1)),
    ],
)
def test_the_blocks_are_those_of_the_memory_report(model: str, system: str, layout: Layout) -> None:
    asked = question(model, system, layout=layout, max_sequences=256)
    limits = asked.limits()
    engine = EngineSettings(
        tp=layout.tp, pp=layout.pp, ep=layout.ep, max_num_batched_tokens=limits.budget_tokens,
        max_num_seqs=limits.max_sequences,
    )  # fmt: skip
    report = gpu_memory_report(
        asked.shape, engine, context_lengths((1000, 400)), memory_bytes=asked.device.memory_bytes
    )
    assert limits.blocks == report.usable_blocks
    held = asked.engine_limits(asked.work())
    assert float(held.kv_tokens[0]) / 1200 == pytest.approx(report.usable_blocks / report.layout.held_blocks(1200))


def test_a_cache_of_known_size_is_taken_as_it_is() -> None:
    asked = question("smollm2-135m", "cpu_epyc_9654", layout=Layout(), kv_cache_bytes=2**29)
    # SmolLM2 keeps 23,040 bytes a token, 128 tokens a block; block 0 is the null block.
    assert asked.limits().blocks == 2**29 // (128 * 23_040) - 1
    assert asked.limits().layout.block_tokens == 128
    assert (asked.limits().budget_tokens, asked.limits().max_sequences) == (2048, 128)


def test_where_memory_is_short_fewer_sequences_are_sampled() -> None:
    """Kimi on four devices: vLLM's default of 1,024 sequences would take the room of most contexts."""
    tight = {"model": "Kimi-K2.5", "system": "b200_sxm", "layout": Layout(tp=1, dp=4, ep=4), "kv_dtype": "fp8"}
    fitted, default = question(**tight), question(**tight, max_sequences=1024)
    assert fitted.limits().blocks > 1.5 * default.limits().blocks


def test_experts_cut_over_all_ranks_weigh_as_much_as_whole_ones() -> None:
    cut, whole = (question("MiniMax-M2", "b200_sxm", layout=Layout(tp=1, dp=8, ep=ep)).limits().blocks for ep in (1, 8))
    assert cut == pytest.approx(whole, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(tokens=st.floats(1, 100_000), more=st.floats(0, 1_000))
def test_longer_contexts_never_fit_more_often(tokens: float, more: float) -> None:
    limits = question("gpt-oss-120b", layout=Layout(tp=2)).limits()
    assert limits.contexts(tokens + more) <= limits.contexts(tokens) + 1e-9


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    with pytest.raises(PlannerError, match="GiB") as refused:
        asked = question(layout=Layout(tp=1))
        asked.engine_limits(asked.work())
    assert refused.value.key == "tp"


def test_tables_do_not_pay_for_a_report_per_row() -> None:
    shape, device = shape_of_model("DeepSeek-V3"), DEVICES.device("h200_sxm")
    stored, layout = storage(shape, None), Layout(tp=8, ep=8)
    limits_of(shape, device, layout, stored, kv_dtype="auto")
    start = perf_counter()
    for _ in range(100):
        limits_of(shape, device, layout, stored, kv_dtype="auto")
    assert perf_counter() - start < 0.1


@pytest.mark.parametrize(
    ("name", "found"),
    [("MAXSUN B60", "b60"), ("[MAXSUN] MS-Intel Arc Pro B60 Dual 48G Turbo", "b60_dual"), ("Arc Pro B60", "b60")],
)
def test_cards_by_the_names_of_those_who_sell_them(name: str, found: str) -> None:
    assert DEVICES.device(name).name == found
