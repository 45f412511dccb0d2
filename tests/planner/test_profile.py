"""Profiles as documents, and what the performance model and the simulator learn from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import yaml

from planner import (
    Calibration,
    PlannerError,
    Profile,
    calibrated_on,
    estimate,
    estimates_at,
    profile_from,
    read_devices,
    shipped_calibration,
    step_costs_of,
)
from planner.perf.profiled import device_of
from planner.profiled_costs import rules_of, simulated
from planner.queueing import EngineRules, StepCosts
from planner.simulate import MixedFleet, Pool, Requests, draw_arrivals, run_closed, run_open

pytestmark = pytest.mark.slow

LOADS = [(1, 32), (1, 600), (1, 3000), (8, 100), (8, 2000), (32, 300), (64, 64), (64, 1500)]
OSL = 100
GPU = {"model": "Llama-3.1-8B", "system": "l40s", "measured": "2026-11-25", "tp": 1, "max_num_seqs": 64}
CPU = {
    "model": "smollm2-135m", "system": "two_cores", "kind": "cpu", "measured": "2026-11-25", "kv_blocks": 182,
    "block_size_tokens": 128, "max_num_seqs": 32, "max_num_batched_tokens": 2048, "async_scheduling": False,
}  # fmt: skip
# As an engine on two cores is, nearly: 9 ms to read the weights, 0.3 ms a prompt token.
COSTS = StepCosts(
    step_s=9e-3, prefill_token_s=3e-4, sequence_s=8e-4, kv_token_s=1.5e-6, prefill_square_s=2e-8, overhead_s=4e-3
)
RULES = EngineRules(
    max_num_batched_tokens=2048, max_num_seqs=32, kv_blocks=181, block_size_tokens=128, async_scheduling=False
)


def spread(mean_ms: float) -> dict[str, float]:
    return {"mean": mean_ms, "p50": mean_ms, "p90": 1.2 * mean_ms, "p99": 1.5 * mean_ms}


def point(concurrency: int, isl: int, ttft_ms: float, tpot_ms: float, requests: int = 40) -> dict[str, object]:
    return {
        "isl": isl, "osl": OSL, "concurrency": concurrency, "requests": requests, "ttft_ms": spread(ttft_ms),
        "tpot_ms": spread(tpot_ms), "out_tok_s": 10.0,
    }  # fmt: skip


def gpu_profile(truth: Calibration, **changes: object) -> Profile:
    """What a deployment that obeys `truth` would be measured to do."""
    blank = profile_from({**GPU, **changes, "points": [point(c, isl, 1, 1) for c, isl in LOADS]}, file="p")
    told = [one for _, one in estimates_at(blank, truth)]
    points = [point(c, isl, e.ttft.mean_ms, e.tpot.mean_ms) for (c, isl), e in zip(LOADS, told, strict=True)]
    return profile_from({**GPU, **changes, "points": points}, file="p")


def engine_profile() -> Profile:
    """The points of a simulated engine of COSTS on a device that no catalogue knows."""
    fleet, points = MixedFleet(pool=Pool(engines=1, costs=COSTS, rules=RULES)), []
    for users, isl in [(1, 32), (1, 350), (1, 1500), (6, 32), (6, 350), (32, 32), (10, 1500), (20, 350)]:
        count = 6 if users == 1 else 4 * users
        outcome = run_closed(fleet, requests(np.full(count, isl), np.full(count, OSL)), concurrency=users)
        points.append(
            point(users, isl, 1e3 * outcome.ttft_s.mean(), 1e3 * float(np.nanmean(outcome.tpot_s)), requests=count)
        )
    return profile_from({**CPU, "points": points}, file="p")


def requests(prompt: np.ndarray, output: np.ndarray, arrival_s: np.ndarray | None = None) -> Requests:
    none = np.zeros(len(prompt), np.int64)
    arrivals = np.empty(0) if arrival_s is None else arrival_s
    return Requests(prompt_tokens=prompt, output_tokens=output, cached_tokens=none, arrival_s=arrivals)


def worst(profile: Profile, calibration: Calibration) -> float:
    return max(abs(e.tpot.mean_ms / p.tpot_ms.mean - 1) for p, e in estimates_at(profile, calibration) if p.tpot_ms)


def slower(knobs: dict[str, float]) -> Calibration:
    return replace(shipped_calibration(), deployments={"Llama-3.1-8B|l40s|bfloat16|vllm": knobs})


def test_a_profile_survives_its_file() -> None:
    profile = gpu_profile(shipped_calibration())
    assert profile_from(yaml.safe_load(yaml.safe_dump(profile.document())), file="p") == profile


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"points": []}, "points"),
        ({"speed": 3}, "speed"),
        ({"measured": "yesterday"}, "measured"),
        ({"points": [point(1, 5, 1, 1) | {"request_rate": 1.0}]}, "points.0.concurrency"),
        ({"points": [point(1, 5, 1, 1) | {"concurrency": None}]}, "points.0.concurrency"),
        ({"points": [point(1, 5, -1, 1)]}, "points.0.ttft_ms.mean"),
        ({"points": [point(1, 5, math.nan, 1)]}, "points.0.ttft_ms.mean"),
        ({"kind": "abacus"}, "kind"),
        ({"format": "ferry-profile/9"}, "format"),
    ],
)
def test_an_odd_profile_is_refused_by_its_key(change: dict[str, object], key: str) -> None:
    with pytest.raises(PlannerError) as refused:
        profile_from({**GPU, "points": [point(1, 5, 1, 1)], **change}, file="mine.yaml")
    assert refused.value.key == key
    assert refused.value.remedy


def test_a_profile_finds_a_slower_deployment_and_says_so() -> None:
    truth = slower({"decode": 0.25, "prefill": -0.2, "sequence": 0.3})
    profile = gpu_profile(truth)
    assert worst(profile, shipped_calibration()) > 0.2
    found = calibrated_on(profile)
    assert worst(profile, found) < 0.05
    unseen = {"isl": 1000, "osl": 300, "concurrency": 20, "max_num_seqs": 64}
    before, after, right = (
        estimate("Llama-3.1-8B", "l40s", **unseen, calibration=c) for c in (shipped_calibration(), found, truth)
    )
    assert after.rung == "measured here" != before.rung
    assert abs(after.tpot.mean_ms / right.tpot.mean_ms - 1) < 0.05 < abs(before.tpot.mean_ms / right.tpot.mean_ms - 1)


def test_the_error_bar_follows_the_points() -> None:
    """Points that agree with each other narrow it, points that contradict each other widen it."""
    shipped = shipped_calibration().sigmas["measured here"]
    profile = gpu_profile(slower({"decode": 0.1}))
    odd = [p.model_copy(update={"tpot_ms": scaled(p, 1.6 if i % 2 else 0.6)}) for i, p in enumerate(profile.points)]
    wild = profile.model_copy(update={"points": tuple(odd)})
    key = "Llama-3.1-8B|l40s|bfloat16|vllm"
    narrow, wide = (calibrated_on(one).own_sigmas[key] for one in (profile, wild))
    assert narrow.tpot < shipped.tpot < wide.tpot
    unseen = estimate("Llama-3.1-8B", "l40s", isl=50, osl=50, concurrency=2, calibration=calibrated_on(profile))
    assert unseen.sigma == narrow


def scaled(one: object, factor: float) -> object:
    tpot = one.tpot_ms  # type: ignore[attr-defined]
    return tpot.model_copy(update={"mean": tpot.mean * factor})


def test_a_profile_leaves_other_deployments_alone() -> None:
    found = calibrated_on(gpu_profile(slower({"decode": 0.3})))
    other = {"isl": 500, "osl": 100, "concurrency": 8}
    assert estimate("Qwen3-8B", "l40s", **other, calibration=found) == estimate("Qwen3-8B", "l40s", **other)


def test_a_new_device_is_what_its_points_say() -> None:
    """SmolLM2 on two cores, which no data sheet describes: calibrated, each point is met to a third."""
    profile = engine_profile()
    device = device_of(profile)
    assert device.kind == "cpu" and device.figure("bf16_tflops").confidence == "derived"
    found = calibrated_on(profile)
    for one, told in estimates_at(profile, found):
        assert one.tpot_ms is not None
        assert abs(math.log(told.tpot.mean_ms / one.tpot_ms.mean)) < 0.3
    assert found.rung is not None


def test_a_new_device_without_memory_is_refused() -> None:
    data = {**CPU, "points": [point(1, 5, 10, 10)]}
    del data["kv_blocks"]
    with pytest.raises(PlannerError) as refused:
        device_of(profile_from(data, file="p"))
    assert refused.value.key == "memory_gib"


def test_a_known_device_stays_as_the_catalogue_has_it() -> None:
    assert device_of(gpu_profile(shipped_calibration())) == read_devices().device("l40s")


def test_step_costs_give_loads_that_the_profile_never_saw() -> None:
    profile = engine_profile()
    assert rules_of(profile) == RULES
    found = step_costs_of(profile)
    for (ttft_s, tpot_s), one in zip(simulated(profile, found), profile.points, strict=True):
        assert one.tpot_ms is not None
        assert abs(ttft_s * 1e3 / one.ttft_ms.mean - 1) < 0.10
        assert abs(tpot_s * 1e3 / one.tpot_ms.mean - 1) < 0.05
    rng = np.random.default_rng(5)
    load = requests(
        rng.integers(50, 800, 2_000), rng.integers(20, 120, 2_000), draw_arrivals(2_000, rate_rps=2.0, seed=3)
    )
    right, told = (run_open(MixedFleet(pool=Pool(engines=1, costs=c, rules=RULES)), load) for c in (COSTS, found))
    for metric in ("ttft", "tpot"):
        for share in (0.5, 0.9, 0.99):
            assert told.percentile_s(metric, share) == pytest.approx(right.percentile_s(metric, share), rel=0.1)


def test_points_at_a_rate_count_too() -> None:
    fleet = MixedFleet(pool=Pool(engines=1, costs=COSTS, rules=RULES))
    lengths = np.full(1_000, 200), np.full(1_000, OSL)
    outcome = run_open(fleet, requests(*lengths, draw_arrivals(1_000, rate_rps=2.0, seed=0)))
    at_rate = point(1, 200, 1e3 * outcome.ttft_s.mean(), 1e3 * float(outcome.tpot_s.mean()), requests=1_000)
    del at_rate["concurrency"]
    profile = engine_profile().with_points(
        *profile_from({**CPU, "points": [at_rate | {"request_rate": 2.0}]}, file="p").points
    )
    ttft_s, tpot_s = simulated(profile, step_costs_of(profile))[-1]
    assert ttft_s * 1e3 == pytest.approx(profile.points[-1].ttft_ms.mean, rel=0.1)
    assert tpot_s == pytest.approx(float(outcome.tpot_s.mean()), rel=0.05)
