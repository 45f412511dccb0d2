"""The memory report of a GPU engine: arithmetic by hand, splits, flags, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from planner import (
    Engine,
    Footprint,
    GpuMemoryReport,
    ModelShape,
    PlannerError,
    context_lengths,
    degrees,
    gpu_memory_report,
    public_models,
)
from planner.contexts import contexts_that_fit
from planner.split import stage_layers

GIB = 1024**3
H100_BYTES = round(79.1 * GIB)
CHAT = context_lengths((1000, 250))
MODELS = {model.names[0]: model.shape for model in public_models()}
LLAMA_8B, LLAMA_70B = MODELS["Llama-3.1-8B"], MODELS["Llama-3.1-70B"]
NOTHING_ELSE = Footprint(activation_bytes=4 * GIB, graph_bytes=GIB, other_bytes=GIB)


def report(shape: ModelShape = LLAMA_8B, engine: Engine | None = None, **changes: object) -> GpuMemoryReport:
    given_ = {"lengths": CHAT, "memory_bytes": H100_BYTES} | changes
    return gpu_memory_report(shape, engine or Engine(), **given_)


def test_by_hand() -> None:
    plan = report(
        engine=Engine(gpu_memory_utilization=0.9, max_num_seqs=256), memory_bytes=80 * GIB, footprint=NOTHING_ELSE
    )
    pool = 72 * GIB - 2 * 8_030_261_248 - 6 * GIB
    assert plan.kv_pool_bytes == pool
    assert plan.block_bytes == 16 * 131_072
    assert plan.blocks == pool // (16 * 131_072) == 26_133
    assert plan.blocks_of_longest == 131_072 // 16
    assert plan.capacity.tokens == 26_133 * 16
    # A running chat has 1,000 tokens and a fifth, on average half, of its answer: 65, 68, 71, 74 or 77 blocks.
    assert plan.contexts() == int(26_132 / 71)
    assert plan.fits
    assert plan.remedy == ""


def test_activations_follow_the_vocabulary() -> None:
    """llm-d-planner on H100, vLLM, 1,024 sequences: 4.8 GiB for Llama (8B, and 70B on TP 2), 5.6 for Qwen3, 7.4
    for gpt-oss-20b."""
    engine = Engine(max_num_seqs=1024)
    measured = [(LLAMA_8B, 1, 4.8), (LLAMA_70B, 2, 4.8), (MODELS["Qwen3-8B"], 1, 5.6), (MODELS["gpt-oss-20b"], 1, 7.4)]
    for shape, tp, gib in measured:
        assert Footprint().activation(shape, replace(engine, tp=tp)) / GIB == pytest.approx(gib, rel=0.05)


def test_which_degrees_fit_a_large_model() -> None:
    found = {
        (degree.tp, degree.pp): degree
        for degree in degrees(
            LLAMA_70B, Engine(max_model_len_tokens=8192), CHAT, memory_bytes=H100_BYTES, max_devices=8
        )
    }
    assert not found[1, 1].fits
    assert "split over more devices or quantise" in found[1, 1].reason
    assert found[4, 1].fits
    assert found[4, 1].reason == ""
    assert found[2, 2].fits
    assert [degree.tp * degree.pp for degree in found.values()] == sorted(
        degree.tp * degree.pp for degree in found.values()
    )


def test_splits_that_vllm_refuses_say_why() -> None:
    """SmolLM2 has 9 heads; block-wise fp8 experts of MiniMax-M2 (1,536 wide) cannot be cut in eight."""
    small = degrees(MODELS["SmolLM2-135M"], Engine(), CHAT, memory_bytes=H100_BYTES, max_devices=2)
    assert [(degree.tp, degree.fits) for degree in small] == [(1, True), (2, False), (1, True)]
    assert "does not divide the 9 attention heads" in small[1].reason
    minimax = MODELS["MiniMax-M2"]
    with pytest.raises(PlannerError, match="whole fp8 blocks"):
        minimax.weight_bytes(tp=8)
    assert minimax.weight_bytes(tp=8, ep=8) < minimax.weight_bytes(tp=4)
    with pytest.raises(PlannerError, match="layers"):
        LLAMA_8B.weight_bytes(pp=33)
    with pytest.raises(PlannerError, match="experts"):
        LLAMA_8B.weight_bytes(ep=2)


def test_flags_realise_the_plan() -> None:
    plan = report(LLAMA_70B, Engine(tp=4, max_model_len_tokens=16_384, kv_dtype="fp8"))
    flags = dict(zip(plan.flags[::2], plan.flags[1::2], strict=True))
    assert flags == {
        "--tensor-parallel-size": "4",
        "--max-model-len": "16384",
        "--max-num-seqs": str(plan.max_num_seqs),
        "--max-num-batched-tokens": "8192",
        "--kv-cache-dtype": "fp8",
        "--gpu-memory-utilization": "0.92",
        "--num-gpu-blocks-override": str(plan.blocks),
        "--block-size": "16",
    }
    wide = report(MODELS["DeepSeek-V3"], Engine(tp=1, ep=16, pp=2, prefix_caching=False, hybrid_kv_cache=False))
    assert wide.flags[2:4] == ("--pipeline-parallel-size", "2")
    assert wide.flags[4:6] == ("--data-parallel-size", "16")
    assert wide.flags[-3:] == (
        "--enable-expert-parallel",
        "--no-enable-prefix-caching",
        "--disable-hybrid-kv-cache-manager",
    )
    assert wide.engine.devices == 32


def test_lines_show_the_arithmetic() -> None:
    text = "\n".join(report(engine=Engine(max_num_seqs=256), footprint=NOTHING_ELSE).lines())
    for part in ("Llama-3.1-8B (32 full layers) on 1 x GPU: TP 1, PP 1, EP 1", "- weights", "14.96 GiB", "KV pool"):
        assert part in text
    assert "does not fit" not in text
    assert "does not fit: split" in "\n".join(report(LLAMA_70B).lines())


@pytest.mark.parametrize(
    ("plan", "advice"),
    [
        (report(LLAMA_70B), "split over more devices or quantise"),
        (report(memory_bytes=24 * GIB, engine=Engine(max_num_seqs=16)), "lower max_model_len to"),
        (report(memory_bytes=24 * GIB, engine=Engine(max_num_seqs=16), lengths=context_lengths((100_000, 10))), "fp8"),
        (report(engine=Engine(max_model_len_tokens=1000)), "raise max_model_len to 1,250"),
    ],
)
def test_what_does_not_fit_comes_with_advice(plan: GpuMemoryReport, advice: str) -> None:
    assert not plan.fits
    assert advice in plan.remedy


def test_the_advised_length_is_the_edge() -> None:
    plan = report(memory_bytes=24 * GIB, engine=Engine(max_num_seqs=16))
    longest = plan.longest_that_fits_tokens
    assert replace(plan, engine=replace(plan.engine, max_model_len_tokens=longest)).fits
    assert not replace(plan, engine=replace(plan.engine, max_model_len_tokens=longest + 16)).fits


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tp": 0}, "tp"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization"),
        ({"tp": 4, "ep": 6}, "ep"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"block_size_tokens": -16}, "block_size_tokens"),
    ],
)
def test_odd_settings_are_refused(changes: dict[str, float], key: str) -> None:
    with pytest.raises(PlannerError) as caught:
        Engine(**changes)
    assert caught.value.key == key


def test_odd_lengths_and_memory_are_refused() -> None:
    with pytest.raises(PlannerError, match="no lengths"):
        context_lengths()
    with pytest.raises(PlannerError, match="at least 1"):
        context_lengths((0, 5))
    with pytest.raises(PlannerError, match="memory_bytes"):
        report(memory_bytes=0)
    with pytest.raises(PlannerError, match="int3"):
        report(engine=Engine(quant="int3"))


def test_long_answers_weigh_more() -> None:
    mean, deviation = context_lengths((100, 10), (100, 1000)).moments(float)
    assert 100 + 0.5 * 1000 * 0.97 < mean < 600
    assert deviation > 0


@given(blocks=st.integers(0, 10**7), mean=st.floats(1, 10**4), deviation=st.floats(0, 10**4), sigmas=st.floats(0, 5))
def test_contexts_keep_their_head_room(blocks: int, mean: float, deviation: float, sigmas: float) -> None:
    count = contexts_that_fit(blocks, mean, deviation, sigmas=sigmas)
    assert count * mean + sigmas * count**0.5 * deviation <= blocks * (1 + 1e-6) + 1e-3
    assert count <= contexts_that_fit(blocks, mean, deviation)


names = st.sampled_from(sorted(MODELS))
memory = st.integers(10 * GIB, 300 * GIB)


@settings(max_examples=60, deadline=None)
@given(name=names, size=memory, more=st.integers(0, 100 * GIB), tp=st.sampled_from([1, 2, 4]))
def test_more_memory_never_lowers_blocks_or_contexts(name: str, size: int, more: int, tp: int) -> None:
    shape = MODELS[name]
    engine = Engine(tp=tp, max_num_seqs=256)
    try:
        small, large = (report(shape, engine, memory_bytes=bytes_) for bytes_ in (size, size + more))
    except PlannerError as error:
        assert error.key == "tp"  # a split that vLLM refuses
        reject()
    assert large.blocks >= small.blocks
    assert large.fits >= small.fits
    assert small.blocks * small.block_bytes <= small.kv_pool_bytes
    free, freer = (report(shape, replace(engine, max_num_seqs=None), memory_bytes=b) for b in (size, size + more))
    assert freer.max_num_seqs >= free.max_num_seqs


@settings(max_examples=60, deadline=None)
@given(name=names, tp=st.sampled_from([1, 2, 4, 8, 16]), pp=st.integers(1, 8), ep=st.sampled_from([1, 2, 8]))
def test_a_split_never_loses_bytes(name: str, tp: int, pp: int, ep: int) -> None:
    """All devices together hold at least the whole, and no device more than the whole."""
    shape = MODELS[name]
    try:
        stages = [shape.weight_bytes(tp=tp, pp=pp, ep=ep, stage=stage) for stage in range(pp)]
    except PlannerError:
        return
    whole = shape.weight_bytes()
    assert sum(stages) * max(tp, ep) >= whole
    assert max(stages) == shape.weight_bytes(tp=tp, pp=pp, ep=ep) <= whole
    assert tp * pp * shape.kv_bytes_per_token(tp=tp, pp=pp) >= shape.kv_bytes_per_token()
    assert shape.kv_bytes_per_token(tp=tp, pp=pp) <= shape.kv_bytes_per_token()


@given(layers=st.integers(1, 200), pp=st.integers(1, 32))
def test_stages_share_out_all_layers(layers: int, pp: int) -> None:
    held = [layer for stage in range(pp) for layer in stage_layers(layers, stage, pp)]
    assert held == list(range(layers))
