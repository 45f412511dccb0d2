"""Results of a validation calibrate the planner: what is taken from them, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from planner import PlannerError, estimate, profile_of_results
from planner.perf.given import calibration_given
from tests.planner.command import plan as command
from tests.planner.command import refused

MS = ("mean", "p50", "p90", "p99")


def point(rate: float, tpot_ms: float, **changes: Any) -> dict[str, Any]:
    measured = {
        "isl": 1000.0,
        "osl": 200.0,
        "request_rate": rate,
        "requests": 300,
        "ttft_ms": dict.fromkeys(MS, 200.0),
        "tpot_ms": dict.fromkeys(MS, tpot_ms),
        "out_tok_s": 200.0 * rate,
    }
    return {"share": 1.0, "verdict": "met", "failed": {}, "measured": measured, **changes}


POOL = {
    "role": "mixed",
    "device": "h100_sxm",
    "replicas": 1,
    "weights": "bfloat16",
    "engine": {"tensor_parallel_size": 1, "max_num_seqs": 128, "max_num_batched_tokens": 8192, "block_size": 16},
}
RESULTS: dict[str, Any] = {
    "format": "ferry-results/1",
    "date": "2026-11-25",
    "versions": {"ferry": "0.1.0", "server": "0.32.0"},
    "plan": {"model": "Llama-3.1-8B", "pools": {"mixed": POOL}},
    "points": [point(2.0, 10.0), point(4.0, 10.3), point(6.0, 10.6)],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULTS), **changes}


def test_the_deployment_and_its_runs_are_read() -> None:
    profile = profile_of_results(RESULTS, file="results.json")
    assert (profile.model, profile.system, profile.engine_version) == ("Llama-3.1-8B", "h100_sxm", "0.32.0")
    assert (profile.tp, profile.max_num_seqs, profile.quant) == (1, 128, "bfloat16")
    assert [one.request_rate for one in profile.points] == [2.0, 4.0, 6.0]


def test_runs_that_say_nothing_of_the_server_are_left_out() -> None:
    points = [point(2.0, 30.0), point(4.0, 30.0, verdict="INVALID"), point(6.0, 30.0, failed={"timeout": 1})]
    assert [one.request_rate for one in profile_of_results(changed(points=points), file="r").points] == [2.0]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format": "ferry-load/1"}, "format"),
        ({"plan": {"model": "m", "pools": {"prefill": POOL, "decode": POOL}}}, "plan.pools"),
        ({"points": []}, "points"),
        ({"points": [point(2.0, 30.0, verdict="INVALID")]}, "points"),
        ({"points": None}, "points"),
    ],
)
def test_what_cannot_calibrate_is_refused_with_the_way_out(change: dict[str, Any], key: str) -> None:
    with pytest.raises(PlannerError) as caught:
        profile_of_results(changed(**change), file="results.json")
    assert caught.value.key == key and caught.value.remedy


@pytest.mark.slow
def test_a_slower_deployment_than_thought_moves_the_estimate(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS))
    told = [
        estimate("Llama-3.1-8B", "h100_sxm", isl=1000, osl=200, request_rate=4.0, calibration=calibration_given(given))
        for given in (None, file)
    ]
    assert abs(told[1].tpot.mean_ms - 10.3) < 0.4 * abs(told[0].tpot.mean_ms - 10.3), told
    assert told[1].rung == "measured here"


@pytest.mark.slow
def test_the_command_takes_results_and_refuses_others(tmp_path: Path) -> None:
    flags = ("estimate", "--model", "Llama-3.1-8B", "--system", "h100_sxm", "--isl", "1000", "--osl", "200")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RESULTS))
    found = command(*flags, "--request-rate", "4", "--calibration", str(file), "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["tpot"]["mean_ms"] > 9
    file.write_text(json.dumps(changed(points=[])))
    refused(command(*flags, "--request-rate", "4", "--calibration", str(file)), "results.json", "points", "less load")
