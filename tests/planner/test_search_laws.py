"""Laws of the search for any question: what is easier or cheaper never costs more, more memory never serves less, and
what is planned fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import Engine, gpu_memory_report
from planner.contexts import ContextLengths
from planner.devices import Device
from planner.questions import question_file, question_of
from planner.search import Answer, plan_for
from planner.search.changes import with_limits
from planner.search.closed import Found, Prepared, prepare, search
from planner.search.fleets import Pool
from planner.search.question import PlanQuestion, Space
from planner.search.traffic import Traffic
from planner.slo import slo_from

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
SPACE = Space(budgets_tokens=(2048, 8192), max_num_seqs=(16, 64, 256), tensor_degrees=(1, 2, 4), fractions=False)
# Rates are found by halving, to 2^-9 of the full one (planner.search.promises).
ROUNDING = 2.0**-7
SYSTEMS = ("a10", "l40s", "a100_80gb", "h100_sxm", "h200", "mi300x")


def asked(**changes: Any) -> PlanQuestion:
    """A question from flags, with a small space."""
    tree = {"ttft_ms": 1000, "tpot_ms": 50, "isl": 1000, "osl": 250, "request_rate": 5, "system": ["h100_sxm"]}
    question = question_of(question_file({"model": "Llama-3.1-8B", **tree, **changes}, file="question"), FOLDER)
    return replace(question, space=SPACE)


questions = st.builds(
    asked,
    model=st.sampled_from(["Llama-3.1-8B", "Qwen2.5-7B", "Llama-3.1-70B", "Mixtral-8x7B", "SmolLM2-135M"]),
    system=st.lists(st.sampled_from(SYSTEMS), min_size=1, max_size=2, unique=True),
    isl=st.integers(50, 6000),
    osl=st.integers(2, 1500),
    request_rate=st.floats(0.05, 200),
    ttft_ms=st.floats(100, 20_000),
    tpot_ms=st.floats(8, 300),
    statistic=st.sampled_from(["mean", "p50", "p90", "p99"]),
)
easier = st.floats(1.0, 4.0)


def ready(question: PlanQuestion) -> tuple[Prepared, Traffic]:
    traffic = Traffic.under(question.slo, question.workload)
    return prepare(question, traffic), traffic


def cost(found: Found) -> float:
    """Dollars per hour of the cheapest fleet; infinite where there is none."""
    return found.fleets[0].usd_per_hour if found.fleets else float("inf")


def rates(found: Found) -> dict[tuple[str, int], float]:
    """The highest rate of one replica by role and pair."""
    best: dict[tuple[str, int], float] = {}
    for designs in found.designs:
        for pair, rate_rps in zip(designs.pair.tolist(), designs.rate_rps.tolist(), strict=True):
            key = (designs.role, pair)
            best[key] = max(best.get(key, 0.0), rate_rps)
    return best


@settings(max_examples=40, deadline=None)
@given(questions, easier, easier)
def test_a_laxer_promise_never_costs_more(question: PlanQuestion, ttft: float, tpot: float) -> None:
    prepared, traffic = ready(question)
    laxer = with_limits(traffic, {"ttft": ttft, "tpot": tpot})
    assert cost(search(prepared, laxer)) <= cost(search(prepared, traffic))


@settings(max_examples=40, deadline=None)
@given(questions, easier)
def test_less_traffic_never_costs_more(question: PlanQuestion, less: float) -> None:
    prepared, traffic = ready(question)
    assert cost(search(prepared, traffic.scaled(1 / less))) <= cost(search(prepared, traffic))


@settings(max_examples=30, deadline=None)
@given(questions, st.floats(0.2, 1.0), st.data())
def test_a_cheaper_device_never_makes_a_dearer_plan(question: PlanQuestion, factor: float, data: st.DataObject) -> None:
    prepared, traffic = ready(question)
    at = data.draw(st.integers(0, len(prepared.usd_per_hour) - 1))
    prices = list(prepared.usd_per_hour)
    prices[at] *= factor
    assert cost(search(replace(prepared, usd_per_hour=tuple(prices)), traffic)) <= cost(search(prepared, traffic))


@settings(max_examples=30, deadline=None)
@given(questions, st.floats(1.0, 3.0))
def test_more_memory_never_lowers_what_a_replica_serves(question: PlanQuestion, factor: float) -> None:
    prepared, traffic = ready(question)
    bigger, _ = ready(replace(question, devices=tuple(_with_memory(one, factor) for one in question.devices)))
    before, after = rates(search(prepared, traffic)), rates(search(bigger, traffic))
    assert {key: rate for key, rate in before.items() if after.get(key, 0.0) < rate * (1 - ROUNDING)} == {}


def _with_memory(device: Device, factor: float) -> Device:
    memory = device.memory_gib
    assert memory is not None
    return device.model_copy(update={"memory_gib": memory.model_copy(update={"value": memory.value * factor})})


@settings(max_examples=30, deadline=None)
@given(questions, st.data())
def test_what_is_planned_fits_into_memory(question: PlanQuestion, data: st.DataObject) -> None:
    prepared, traffic = ready(question)
    fleets = search(prepared, traffic).fleets
    if not fleets:
        return
    for pool in fleets[data.draw(st.integers(0, len(fleets) - 1))].pools:
        _fits(question, prepared, traffic, pool)


def _fits(question: PlanQuestion, prepared: Prepared, traffic: Traffic, pool: Pool) -> None:
    """The report that a human can check, of one engine, grants as many blocks as were planned."""
    layout, designs, row = pool.form.layout, pool.designs, pool.row
    lengths = traffic.lengths
    contexts = ContextLengths(
        requests=tuple(zip(lengths.prompt_tokens[:500].tolist(), lengths.output_tokens[:500].tolist(), strict=True))
    )
    report = gpu_memory_report(
        question.shape,
        Engine(
            tp=layout.tp,
            pp=layout.pp,
            ep=layout.ep,
            quant=pool.form.quant,
            kv_dtype=pool.form.kv_dtype,
            gpu_memory_utilization=question.gpu_memory_utilization,
            max_model_len_tokens=prepared.max_len,
            max_num_batched_tokens=int(designs.budget[row]),
            max_num_seqs=int(designs.seqs[row]),
        ),
        contexts,
        memory_bytes=pool.device.memory_bytes,
    )
    assert report.fits and int(np.asarray(designs.blocks)[row]) <= report.blocks
    assert (
        report.used_bytes + report.blocks * report.block_bytes
        <= pool.device.memory_bytes * question.gpu_memory_utilization
    )


@settings(max_examples=8, deadline=None)
@given(
    question=st.builds(
        asked,
        system=st.just(["l40s", "h100_sxm"]),
        isl=st.integers(200, 2000),
        osl=st.integers(50, 400),
        request_rate=st.floats(0.5, 30),
        ttft_ms=st.floats(300, 3000),
        tpot_ms=st.floats(20, 120),
    ),
    factor=st.floats(1.1, 2.0),
    which=st.sampled_from(["ttft", "tpot", "rate"]),
)
def test_simulated_plans_obey_the_laws_too(question: PlanQuestion, factor: float, which: str) -> None:
    """One replica of a pool is the grain of a verdict that a finite simulation gives: it may cost that much more."""
    question = replace(question, verify_top=3, most_requests=2_000)
    before, after = plan_for(question), plan_for(_easier(question, which, factor))
    if not isinstance(before, Answer):
        return
    assert isinstance(after, Answer), "what held before holds when it is easier"
    pools = after.cheapest.plan.pools.values()
    grain_usd = max(pool.cost.usd_per_hour / pool.replicas for pool in pools)
    assert after.cheapest.usd_per_hour <= before.cheapest.usd_per_hour + grain_usd


def _easier(question: PlanQuestion, which: str, factor: float) -> PlanQuestion:
    (name,) = question.workload.streams
    if which == "rate":
        rate_rps = question.workload.mean_rate_rps(name) / factor
        return replace(question, workload=question.workload.at_rate(name, rate_rps))
    (promised,) = question.slo.classes.values()
    key = f"{which}_ms"
    limits = {one: getattr(promised, one).model_dump(exclude_none=True) for one in ("ttft_ms", "tpot_ms")}
    limits[key] = {statistic: factor * limit_ms for statistic, limit_ms in limits[key].items()}
    return replace(question, slo=slo_from({"classes": {name: limits}}))
