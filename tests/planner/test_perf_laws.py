"""The performance model obeys physics: what costs more work takes longer, what is faster takes less."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import device, shape_of_model
from planner.perf.calibration import Calibration
from planner.perf.chip import Chip, chip_of
from planner.perf.coefficients import beliefs, rows_of
from planner.perf.estimate import Estimate, estimate
from planner.perf.roofline import Batch, step
from planner.perf.serving import Engine, Load, serve
from planner.perf.work import Layout, Work, storage, work_of

BELIEFS = Calibration()
MODELS = ("Llama-3.1-8B", "Qwen3-32B", "Mixtral-8x7B", "DeepSeek-V3", "gpt-oss-20b")
DEVICES = ("h100_sxm", "b200_sxm", "mi300x", "l40s")

models = st.sampled_from(MODELS)
devices = st.sampled_from(DEVICES)
tokens = st.floats(1, 50_000)
batches = st.floats(1, 2_000)


def step_s(
    work: Work, chip: Chip, *, decoding: float = 8, context: float = 1000, prefill: float = 0, pairs: float = 0
) -> float:
    batch = Batch.row(
        decoding=decoding, context=context, prefill=prefill, pairs=pairs, prompts=float(prefill > 0), others=decoding
    )
    return float(step(work, chip, rows_of(beliefs(), 1), batch).total_s[0])


@cache
def tables(model: str, name: str, tp: int = 1, quant: str | None = None) -> tuple[Work, Chip]:
    shape = shape_of_model(model)
    stored = storage(shape, quant)
    return work_of(shape, Layout(tp=tp), stored), chip_of(device(name), stored)


def asked(**changes: object) -> Estimate:
    usual = {"model": "Llama-3.1-8B", "system": "h100_sxm", "isl": 1000, "osl": 200, "calibration": BELIEFS}
    return estimate(**{**usual, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(models, devices, batches, st.floats(1, 4), tokens)
def test_more_sequences_take_longer(model: str, name: str, few: float, times: float, context: float) -> None:
    work, chip = tables(model, name)
    shorter = step_s(work, chip, decoding=few, context=context)
    assert step_s(work, chip, decoding=few * times, context=context) >= shorter * (1 - 1e-12)


@settings(deadline=None)
@given(models, devices, tokens, st.floats(1, 4))
def test_longer_contexts_take_longer(model: str, name: str, context: float, times: float) -> None:
    work, chip = tables(model, name)
    assert step_s(work, chip, context=context * times) >= step_s(work, chip, context=context) * (1 - 1e-12)


@settings(deadline=None)
@given(models, devices, tokens, st.floats(1, 4))
def test_more_prompt_takes_longer(model: str, name: str, prompt: float, times: float) -> None:
    work, chip = tables(model, name)
    short = step_s(work, chip, prefill=prompt, pairs=prompt**2 / 2)
    longer = prompt * times
    assert step_s(work, chip, prefill=longer, pairs=longer**2 / 2) >= short * (1 - 1e-12)


@settings(deadline=None)
@given(models, devices, batches, st.sampled_from(("memory", "memory_packed", "memory_experts", "kv", "products_16")))
def test_a_faster_device_is_never_slower(model: str, name: str, decoding: float, figure: str) -> None:
    work, chip = tables(model, name)
    faster = replace(chip, **{figure: 2 * getattr(chip, figure)})
    assert step_s(work, faster, decoding=decoding) <= step_s(work, chip, decoding=decoding) * (1 + 1e-12)


@settings(deadline=None)
@given(st.sampled_from(("Llama-3.1-8B", "Qwen3-32B", "Mixtral-8x7B")), devices, batches, st.sampled_from((2, 4, 8)))
def test_tensor_parallelism_never_beats_perfect_scaling(model: str, name: str, decoding: float, tp: int) -> None:
    one, chip = tables(model, name)
    cut, _ = tables(model, name, tp)
    assert step_s(cut, chip, decoding=decoding) >= step_s(one, chip, decoding=decoding) / tp


@settings(deadline=None)
@given(models, batches)
def test_a_step_reads_each_weight_at_most_once(model: str, decoding: float) -> None:
    """The bytes a step streams lie between the active and all parameters."""
    work, chip = tables(model, "h100_sxm", quant="bf16")
    shape = shape_of_model(model)
    bare = replace(chip, memory=np.array([1.0]), memory_packed=np.array([1.0]), memory_experts=np.array([1.0]))
    endless = {name: np.array([1e30]) for name in ("products_16", "products_packed", "attention", "kv", "link")}
    co = replace(rows_of(beliefs(), 1), memory=np.array([1.0]), experts=np.array([1.0]))
    batch = Batch.row(decoding=decoding, context=1, prefill=0, pairs=0, prompts=0, others=decoding)
    parts = step(work, replace(bare, **endless), co, batch)
    read_bytes = float((parts.weights_s + parts.experts_s)[0])
    embeddings = shape.params_by_part()["embedding"]
    active = 2 * (shape.active_params_per_token - embeddings)
    assert 0.99 * active <= read_bytes <= 2.001 * shape.params


def test_a_decode_step_is_the_sum_that_a_person_computes() -> None:
    """Llama-3.1-8B in bf16 on one H100: 14.96 GB of matrices and head at 0.80 x 3.35 TB/s, and 32 layers' overhead."""
    work, chip = tables("Llama-3.1-8B", "h100_sxm")
    read_bytes = 2 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336 + 2 * 4096) + 4096 + 128256 * 4096)
    known = beliefs()
    overhead_s = known["step_s"] + 32 * known["layer_s"] + known["sequence_s"]
    expected_s = read_bytes / (0.80 * 3.35e12) + overhead_s
    assert step_s(work, chip, decoding=1, context=1) == pytest.approx(expected_s, rel=0.01)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(models, st.floats(1, 200), st.floats(1, 3))
def test_more_clients_never_make_a_token_faster(model: str, clients: float, times: float) -> None:
    few = asked(model=model, system="b200_sxm", tp=8, concurrency=clients)
    many = asked(model=model, system="b200_sxm", tp=8, concurrency=clients * times)
    assert many.tpot.mean_ms >= few.tpot.mean_ms * (1 - 1e-3)
    assert many.out_tok_s >= few.out_tok_s * (1 - 1e-2)


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 400), st.floats(10, 4000), st.floats(200, 4000))
def test_littles_law_holds(clients: float, isl: float, osl: float) -> None:
    """Clients = rate x time in the system, while none waits for a place and the opening burst weighs little."""
    answer = asked(concurrency=clients, isl=isl, osl=osl)
    if answer.limit != "none":
        return
    in_system_s = (answer.ttft.mean_ms + (osl - 1) * answer.tpot.mean_ms) / 1e3
    assert answer.request_rate * in_system_s == pytest.approx(clients, rel=0.15, abs=0.2)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 20), st.floats(1, 3))
def test_a_higher_rate_is_never_faster(rate: float, times: float) -> None:
    slow, fast = asked(request_rate=rate), asked(request_rate=rate * times)
    assert fast.tpot.mean_ms >= slow.tpot.mean_ms * (1 - 1e-3)
    assert fast.ttft.mean_ms >= slow.ttft.mean_ms * (1 - 1e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 600), st.sampled_from(("concurrency", "request_rate", "batch")))
def test_percentiles_are_in_order(load: float, kind: str) -> None:
    answer = asked(**{kind: load / 30 if kind == "request_rate" else load})
    for figure in (answer.ttft, answer.tpot):
        assert 0 < figure.p50_ms <= figure.p90_ms <= figure.p99_ms
        assert figure.mean_ms <= figure.p99_ms


def test_packed_weights_decode_faster() -> None:
    bf16, fp8, int4 = (asked(quant=quant, concurrency=1).tpot.mean_ms for quant in ("bf16", "fp8", "int4"))
    assert bf16 > fp8 > int4


def test_a_full_cache_makes_requests_queue() -> None:
    answer = asked(model="Qwen3-32B", tp=1, isl=4000, concurrency=64)
    assert "KV cache" in answer.limit
    assert answer.ttft.mean_ms > 5 * asked(model="Qwen3-32B", tp=8, isl=4000, concurrency=64).ttft.mean_ms


def test_more_devices_than_a_node_pay_for_the_network() -> None:
    work, chip = tables("Llama-3.1-8B", "h100_sxm", tp=8)
    far = replace(chip, node_devices=np.array([4.0]), network=np.array([50e9]))
    assert step_s(work, far, prefill=4096) > 1.2 * step_s(work, chip, prefill=4096)


def test_an_overloaded_engine_never_answers_and_serves_what_it_can() -> None:
    flooded, brisk = asked(request_rate=10_000), asked(request_rate=5)
    assert np.isinf(flooded.ttft.mean_ms)
    assert "overloaded" in flooded.limit
    assert 5 < flooded.request_rate < 10_000
    assert np.isfinite(brisk.ttft.p99_ms)


def test_ten_thousand_configurations_are_answered_at_once() -> None:
    """One call, no object per configuration; the time itself is measured elsewhere."""
    work, chip = tables("Llama-3.1-8B", "h100_sxm")
    clients = np.linspace(1, 500, 10_000)
    rows = np.zeros(10_000, np.intp)
    same = np.full(10_000, 1000.0)
    load = Load(
        isl=same,
        osl=same,
        concurrency=clients,
        rate_rps=0 * same,
        prompts_per_client=same / 100,
        spread=same / 5000,
    )
    engine = Engine(budget_tokens=8 * same, max_sequences=same, kv_tokens=400 * same)
    served = serve(work.take(rows), chip.take(rows), rows_of(beliefs(), 10_000), load, engine, rounds=14)
    assert np.all(np.diff(served.tpot_s) > -1e-6)
    assert served.tpot_s[-1] > 1.5 * served.tpot_s[0]
