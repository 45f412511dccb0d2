"""A plan beside what its deployment does; the deployment is the truth server, which does what it is told."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from loadtest.cli import load_app
from loadtest.load import make_load
from loadtest.report import build
from loadtest.truth import TruthServer
from loadtest.types import LoadTestError
from loadtest.validate.load import burstiness_of, load_of
from loadtest.validate.prediction import Predicted, class_of, of_model, of_plan
from loadtest.validate.results import FORMAT, point_of, verdict_of
from planner import Plan, profile_of_results, slo_from
from tests.loadtest.bad_servers import CHAT, BadServer
from tests.loadtest.conftest import QUICK
from tests.loadtest.test_bad_ends import until
from tests.loadtest.test_results import result, some
from tests.planner.plans import plan, pool

pytestmark = pytest.mark.slow

TRAFFIC = {"isl": {"mean": 5.0}, "osl": {"mean": 8.0}}


def written(folder: Path, made: Plan) -> Path:
    file = folder / "plan.yaml"
    tree = made.document()
    tree["traffic"] = {"rate_rps": 20.0, "busy_rate_rps": 20.0, **TRAFFIC}
    file.write_text(yaml.safe_dump(tree))
    return file


def validate(truth: TruthServer, folder: Path, file: Path, *arguments: str) -> Result:
    common = ["--plan", str(file), "--base-url", truth.base_url, "--save-dir", str(folder / "out"), "--timeout-s", "5"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(load_app, ["validate", *common, *arguments])


def test_three_rates_are_measured_and_written_beside_the_prediction(truth: TruthServer, tmp_path: Path) -> None:
    truth.change(replace(QUICK, ttft_ms=30, gap_ms=5))
    told = validate(truth, tmp_path, written(tmp_path, plan()), "--seconds", "2", "--warmup-s", "0.5")
    assert told.exit_code in (0, 3), told.output
    tree: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    assert tree["format"] == FORMAT and tree["versions"]["server"] == "unknown" and tree["plan"]["file"] == "plan.yaml"
    assert [point["share"] for point in tree["points"]] == [0.9, 1.0, 1.1]
    for point in tree["points"]:
        assert (tmp_path / "out" / point["report"]).exists() and point["failed"] == {}
        assert set(point["measured"]) == {"isl", "osl", "request_rate", "requests", "ttft_ms", "tpot_ms", "out_tok_s"}
        assert set(point["measured"]["ttft_ms"]) == {"mean", "p50", "p90", "p99"}
        assert point["measured"]["osl"] == 8 and point["usd_per_million_good_tokens"] > 0
    planned = tree["points"][1]
    assert planned["predicted"][0]["source"] == "plan, closed form" and len(planned["predicted"]) == 2
    found_ms, off = planned["measured"]["ttft_ms"]["p50"], planned["off"]["plan, closed form"]
    assert 30 <= found_ms < 60 and off["ttft_p50"] == pytest.approx(found_ms / 100 - 1)
    assert off["attainment_points"] == pytest.approx(planned["attainment"]["share"] - 0.995)
    why_not = tree["points"][0]["predicted"][0]["why_not"]
    assert why_not, "nobody knows a model called a/model"
    assert f"performance model predicts nothing: {why_not}\n" in told.output, "whole, below the table"
    if told.exit_code == 0:
        learnt = profile_of_results(tree, file="results.json").points
        assert [one.request_rate for one in learnt] == [point["measured"]["request_rate"] for point in tree["points"]]


def test_a_plan_that_does_not_hold_is_exit_code_1(truth: TruthServer, tmp_path: Path) -> None:
    truth.change(replace(QUICK, error_share=0.5))
    told = validate(truth, tmp_path, written(tmp_path, plan()), "--seconds", "1", "--warmup-s", "0", "--json")
    assert told.exit_code in (1, 3), told.output
    tree = json.loads(told.stdout.splitlines()[-1])
    assert tree["points"][1]["failed"]["server_error"] > 0 and tree["points"][1]["attainment"]["share"] < 1


def stop(_: BadServer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("what", "code", "why", "shares"),
    [(BadServer.close_the_door, 2, "cannot", [0.9, 1.0]), (stop, 130, "needs all three loads", [0.9])],
)
def test_rates_that_were_measured_are_kept(
    what: Callable[[BadServer], None], code: int, why: str, shares: list[float], tmp_path: Path
) -> None:
    """In the second of three loads the server is gone, or we are stopped."""
    with BadServer({}) as server:
        server.routes[CHAT] = until(30, lambda: what(server))
        flags = ["--plan", str(written(tmp_path, plan())), "--base-url", server.base_url, "--save-dir", str(tmp_path)]
        told = CliRunner(env={"COLUMNS": "200"}).invoke(
            load_app, ["validate", *flags, "--seconds", "1", "--warmup-s", "0"]
        )
    assert told.exit_code == code and why in told.output, told.output
    tree = json.loads((tmp_path / "results.json").read_text())
    assert [point["share"] for point in tree["points"]] == shares and why in tree["stopped"]


def test_what_cannot_be_validated_is_told(truth: TruthServer, tmp_path: Path) -> None:
    missing = validate(truth, tmp_path, tmp_path / "none.yaml")
    assert missing.exit_code == 2 and "cannot be read" in missing.output
    short = validate(truth, tmp_path, written(tmp_path, plan()), "--seconds", "1")
    assert short.exit_code == 2 and "must be above --warmup-s" in short.output
    unknown = validate(truth, tmp_path, written(tmp_path, plan()), "--slo-class", "batch")
    assert unknown.exit_code == 2 and "it has chat" in unknown.output


def two_classes() -> Plan:
    slo = slo_from({"classes": {"chat": {"ttft_ms": 500}, "batch": {"e2e_ms": 9000}}})
    return plan().model_copy(update={"slo": slo})


def test_of_several_classes_one_has_to_be_named() -> None:
    with pytest.raises(LoadTestError, match="say with --slo-class"):
        class_of(two_classes(), "")
    assert class_of(two_classes(), "batch") == "batch" and class_of(plan(), "") == "chat"
    assert of_plan(two_classes(), "batch").why_not == "the plan predicts nothing of batch"


def test_the_performance_model_answers_for_a_model_that_it_knows() -> None:
    known = plan().model_copy(update={"model": "meta-llama/Llama-3.1-70B-Instruct"})
    found, faster = of_model(known, 2.0, 500, 250), of_model(known, 4.0, 500, 250)
    assert not found.why_not and found.ttft_ms is not None and found.tpot_ms is not None, found
    assert found.ttft_ms["p50"] <= found.ttft_ms["p99"] and found.out_tok_s == pytest.approx(500, rel=0.01)
    assert faster.tpot_ms is not None and faster.tpot_ms["p50"] >= found.tpot_ms["p50"]
    split = plan(pool("prefill"), pool("decode"))
    assert "several pools" in of_model(split, 2.0, 500, 250).why_not


def test_a_point_says_how_far_off_each_prediction_was() -> None:
    made = result(some(10))
    told = Predicted("plan", ttft_ms={"p50": 200.0, "p90": 100.0, "p99": 50.0}, attainment=0.9, out_tok_s=10.0)
    silent = Predicted("model", why_not="unknown")
    point = point_of(1.0, build(made), "load-abc.json", [told, silent])
    assert point.off["plan"]["ttft_p50"] == pytest.approx(-0.5) and point.off["plan"]["ttft_p99"] == pytest.approx(1.0)
    assert point.off["plan"]["attainment_points"] == pytest.approx(0.1) and "model" not in point.off
    assert point.measured.request_rate == pytest.approx(10) and point.measured.requests == 10
    low, high = replace(point, share=0.9, verdict="missed"), replace(point, share=1.1, verdict="missed")
    assert verdict_of([low, point, high]).value == "met"
    assert verdict_of([replace(low, verdict="INVALID"), point, high]).value == "INVALID"


def test_burstiness_is_the_gamma_shape_of_the_gaps() -> None:
    assert burstiness_of(1.0) == 1 and burstiness_of(2.0) == 0.25 and burstiness_of(0.0) == math.inf


def test_the_load_is_the_planned_traffic() -> None:
    asked = load_of(plan(rate_rps=4.0), 1.1, endpoint="/v1/chat/completions", model="m", seconds=20.0, seed=0)
    jobs = make_load(asked).jobs
    assert asked.request_rate_rps == pytest.approx(4.4) and 60 <= len(jobs) <= 120
    lengths = [json.loads(job.body)["max_completion_tokens"] for job in jobs]
    assert len(set(lengths)) > 10 and 150 < sum(lengths) / len(lengths) < 400, "spread as planned, about 250"
    assert all(json.loads(job.body)["ignore_eos"] for job in jobs)
