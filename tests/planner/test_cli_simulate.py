"""`ferry simulate`: a plan under its own traffic, another rate, a closed loop or a workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import estimate, write_plan
from tests.planner.command import ferry, refused, tree_of
from tests.planner.plans import plan, pool

WORKLOAD = """
streams:
  chat:
    lengths: {kind: constant, isl: 400, osl: 50}
    arrivals: {kind: poisson, rate_rps: 3}
"""


@pytest.fixture
def planned(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    write_plan(plan(), path)
    return str(path)


def simulate(*arguments: str) -> dict[str, object]:
    told = ferry("simulate", *arguments, "--json")
    assert told.exit_code in (0, 3), told.output
    return tree_of(told)


def test_people_see_percentiles_throughput_and_preemptions(planned: str) -> None:
    told = ferry("simulate", "--plan", planned, "--requests", "3000")
    assert told.exit_code == 0, told.output
    for word in ("TTFT", "TPOT", "P99", "±", "output tokens/s", "preemptions", "engine 1", "promised: met"):
        assert word in told.stdout


def test_the_planned_traffic_comes_at_the_planned_rate(planned: str) -> None:
    tree = simulate("--plan", planned, "--requests", "5000")
    assert tree["request_rate_rps"] == pytest.approx(4.0, rel=0.1) and tree["requests"] == 5000
    assert tree["classes"]["chat"]["met"] and tree["preemptions"] == 0
    assert len(tree["engines"]) == 2
    assert tree == simulate("--plan", planned, "--requests", "5000")
    assert tree != simulate("--plan", planned, "--requests", "5000", "--seed", "1")


def test_more_traffic_than_the_plan_bears_is_exit_code_3(planned: str) -> None:
    told = ferry("simulate", "--plan", planned, "--requests", "3000", "--request-rate", "400", "--json")
    assert told.exit_code == 3
    assert tree_of(told)["classes"]["chat"]["within"] < 0.9


def test_a_closed_loop_keeps_its_callers_busy(planned: str) -> None:
    tree = simulate("--plan", planned, "--requests", "2000", "--concurrency", "32")
    busy = sum(engine["mean_sequences"] for engine in tree["engines"])
    assert 20 < busy <= 32


def test_a_workload_takes_the_place_of_the_summary(planned: str, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WORKLOAD)
    tree = simulate("--plan", planned, "--requests", "2000", "--workload", str(tmp_path / "w.yaml"))
    assert tree["request_rate_rps"] == pytest.approx(3.0, rel=0.1)
    assert tree["out_tok_s"] == pytest.approx(150, rel=0.1)


def test_split_pools_are_simulated_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(plan(pool("prefill", replicas=1), pool("decode", replicas=2)), path)
    tree = simulate("--plan", str(path), "--requests", "2000")
    assert len(tree["engines"]) == 3 and tree["classes"]["chat"]["requests"] == 1800


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--concurrency", "4", "--request-rate", "1"), ("--concurrency is 4", "keep one")),
        (("--request-rate", "-1"), ("-1.0", "above 0")),
        (("--workload", "none.yaml"), ("none.yaml", "cannot be read")),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(planned: str, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(ferry("simulate", "--plan", planned, *arguments), *words)


def test_a_request_that_no_engine_can_hold_is_named(planned: str, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WORKLOAD.replace("400", "4000000"))
    refused(ferry("simulate", "--plan", planned, "--workload", str(tmp_path / "w.yaml")), "longest request")


def test_a_plan_without_a_fleet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(plan(pool("decode")), path)
    refused(ferry("simulate", "--plan", str(path)), "no fleet that can be simulated")


LLAMA = ("--model", "Llama-3.1-8B", "--system", "l40s", "--requests", "3000", "--isl", "500", "--osl", "100")


def test_one_deployment_needs_no_plan() -> None:
    tree = simulate(*LLAMA, "--request-rate", "2")
    assert tree["request_rate_rps"] == pytest.approx(2.0, rel=0.1) and tree["classes"] == {}
    two = simulate(*LLAMA, "--request-rate", "2", "--replicas", "2")
    assert len(two["engines"]) == 2 and two["latencies"]["tpot"]["p99_ms"] < tree["latencies"]["tpot"]["p99_ms"]


def test_a_deployment_agrees_with_its_estimate_where_little_queues() -> None:
    tree = simulate(*LLAMA, "--request-rate", "1")
    same = estimate("Llama-3.1-8B", "l40s", isl=500, osl=100, request_rate=1)
    assert tree["latencies"]["tpot"]["mean_ms"] == pytest.approx(same.tpot.mean_ms, rel=0.15)


def test_an_slo_judges_a_deployment(tmp_path: Path) -> None:
    (tmp_path / "slo.yaml").write_text("classes: {requests: {ttft_ms: {p50: 1}}}")
    told = ferry("simulate", *LLAMA, "--request-rate", "1", "--slo", str(tmp_path / "slo.yaml"))
    assert told.exit_code == 3 and "promised: missed" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--model is missing", "--plan")),
        (("--model", "Llama-3.1-8B"), ("--system is missing",)),
        (("--model", "Llama-3.1-70B", "--system", "l4"), ("no room", "raise tp")),
        (("--model", "Llama-3.1-8B", "--system", "l4", "--ep", "2"), ("cannot split",)),
        (("--model", "Qwen3-8B", "--system", "ascend_910b3", "--quant", "fp8"), ("no fp8 unit",)),
    ],
)
def test_a_deployment_that_cannot_be_is_named(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(ferry("simulate", *arguments), *words)
