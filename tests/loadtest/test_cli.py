"""`ferry load` as a user types it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from loadtest.arrivals import Family, Spread
from loadtest.cli import load_app
from loadtest.jobs import body
from loadtest.load import make_load
from loadtest.options import parse_header, parse_slo, profile_of, spread_of
from loadtest.results import read_records
from loadtest.truth import TruthServer
from loadtest.types import LoadTestError, Slo
from tests.loadtest.conftest import QUICK
from tests.loadtest.model_server import says, serving
from tests.loadtest.plans import PLAN
from tests.loadtest.test_traces import BURSTGPT, WEKA, written


def load(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(load_app, [*arguments])


def run(truth: TruthServer, folder: Path, *arguments: str) -> Result:
    common = ["--base-url", truth.base_url, "--save-dir", str(folder), "--isl", "5", "--osl", "4", "--timeout-s", "5"]
    return load("run", *common, *arguments)


def test_a_run_that_meets_its_slo_says_so_and_saves_it(truth: TruthServer, tmp_path: Path) -> None:
    told = run(truth, tmp_path, "--request-rate", "50", "--num-prompts", "20", "--goodput", "ttft:4000 tpot:1000")
    # A machine that is busy enough makes the run invalid, and that has to be told as well.
    assert told.exit_code in (0, 3), told.output
    met = any(line in ("SLO met", "SLO met (too few requests to be sure at 95 %)") for line in told.output.splitlines())
    assert met == (told.exit_code == 0) and ("INVALID" in told.output) == (told.exit_code == 3)
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (records,) = (read_records(path) for path in tmp_path.glob("*.jsonl"))
    assert report["total"]["outcomes"] == {"ok": 20} and len(records) == 20
    assert report["total"]["mean_output_tokens"] == 4 and report["client"]["workers"][0]["sent"] == 20


def test_a_missed_slo_is_exit_code_1(truth: TruthServer, tmp_path: Path) -> None:
    truth.change(replace(QUICK, error_share=1.0, error_status=503))
    told = run(truth, tmp_path, "--max-concurrency", "2", "--num-prompts", "6", "--goodput", "ttft:4000", "--json")
    assert told.exit_code in (1, 3), told.output
    tree = json.loads(told.stdout.splitlines()[-1])
    assert tree["total"]["outcomes"] == {"shed": 6} and tree["total"]["attainment"]["share"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--goodput", "latency:5"], "'latency' is none of ttft"),
        (["--goodput", "ttft:fast"], "'fast' is no number of milliseconds"),
        (["--goodput", "ttft:inf"], "'inf' is no number of milliseconds"),
        (
            ["--goodput", "e2e:9 ttft:5", "--no-stream"],
            "TPOT or gaps, which whole answers do not show: leave --no-stream",
        ),
        (["--goodput", "tpot:5", "--no-stream"], "TPOT or gaps, which whole answers do not show: leave --no-stream"),
        (["--goodput", "max_gap:5", "--no-stream"], "TPOT or gaps, which whole answers do not show: leave --no-stream"),
        (["--goodput", "e2e:5", "--no-stream"], "cannot connect to 127.0.0.1:9"),
        (["--request-rate", "0"], "the request rate must be above 0"),
        (["--endpoint", "/v1/embeddings"], "is not a route that can be measured"),
        (["--trace", "missing.csv"], "cannot be read"),
        (["--header", "no colon"], "Name: value"),
        (["--benchmark-duration", "5"], "needs --num-prompts"),
        (["--request-rate", "5", "--on-off", "1:2"], "need a --benchmark-duration"),
        (["--slo", "missing.yaml"], "cannot be read"),
        (["--goodput", "ttft:5", "--slo", "missing.yaml"], "two SLOs"),
        (["--workload", "missing.yaml"], "cannot be read"),
        (["--dataset-path", "missing.json"], "cannot be read"),
        (["--tools", "missing.json"], "cannot be read"),
        (["--extra-body", "[]"], "no JSON object"),
        (["--extra-body", "{"], "no JSON"),
        (["--tenant", "a=-1"], "NAME=WEIGHT"),
        (["--tokenizer", "endpoint"], "cannot reach 127.0.0.1:9/tokenize"),
        (["--base-url", "ftp://x"], "is not an http or https URL"),
        (["--base-url", "http://127.0.0.1:9"], "cannot connect to 127.0.0.1:9"),
    ],
)
def test_what_cannot_run_is_exit_code_2_with_a_reason(arguments: list[str], told: str, tmp_path: Path) -> None:
    found = load("run", "--model", "m", "--save-dir", str(tmp_path), "--base-url", "http://127.0.0.1:9", *arguments)
    assert found.exit_code == 2 and told in found.output and "Traceback" not in found.output


def test_without_a_model_the_endpoint_must_name_one(tmp_path: Path) -> None:
    found = load("run", "--base-url", "http://127.0.0.1:9", "--save-dir", str(tmp_path))
    assert found.exit_code == 2 and "cannot reach 127.0.0.1:9/v1/models" in found.output


SLO = "classes:\n  chat: {ttft_ms: {p50: 5000}, tpot_ms: 2000}\n  batch: {e2e_ms: 20000, attainment: 0.9}\n"
WORKLOAD = """streams:
  chat: {lengths: {kind: constant, isl: 40, osl: 2}, arrivals: {kind: poisson, rate_rps: 20}}
  batch: {lengths: {kind: constant, isl: 60, osl: 3}, arrivals: {kind: poisson, rate_rps: 10}}
"""


@pytest.mark.slow
def test_the_planners_documents_drive_a_run_and_its_verdict(tmp_path: Path) -> None:
    documents = ("--slo", str(written(tmp_path / "slo.yaml", SLO)))
    documents += ("--workload", str(written(tmp_path / "workload.yaml", WORKLOAD)))
    folder = tmp_path / "results"
    with serving(says("a", "b")) as server:
        common = ("--base-url", server.base_url, "--save-dir", str(folder), "--tokenizer", "endpoint")
        told = load("run", *common, *documents, "--num-prompts", "30", "--class-header", "X-Class")
    assert told.exit_code in (0, 3), told.output
    assert "class chat: p50 of ttft is " in told.output and "class batch: met" in told.output
    (report,) = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    assert report["judged"]["chat"]["met"] and report["judged"]["batch"]["wanted"] == 0.9
    assert report["classes"]["chat"]["mean_prompt_tokens"] == 40
    assert report["classes"]["batch"]["mean_prompt_tokens"] == 60
    assert not report["warnings"] or "length" not in " ".join(report["warnings"])
    assert {headers["X-Class"] for _, headers in server.asked} == {"chat", "batch"}


def test_one_class_of_an_slo_is_chosen(truth: TruthServer, tmp_path: Path) -> None:
    slo = str(written(tmp_path / "slo.yaml", SLO))
    told = run(truth, tmp_path, "--num-prompts", "4", "--max-concurrency", "2", "--slo", slo)
    assert told.exit_code == 2 and "--slo-class should be one of chat, batch" in told.output
    workload = ("--workload", str(written(tmp_path / "workload.yaml", WORKLOAD)))
    told = load("run", "--model", "m", "--save-dir", str(tmp_path), "--slo", slo, *workload, "--slo-class", "nope")
    assert told.exit_code == 2 and "--slo-class should be one of chat, batch" in told.output
    told = run(truth, tmp_path, "--num-prompts", "4", "--max-concurrency", "2", "--slo", slo, "--slo-class", "batch")
    assert told.exit_code in (0, 3) and "SLO met by 4 of 4" in told.output


def test_tools_formats_and_more_are_in_the_requests(tmp_path: Path) -> None:
    tools = written(tmp_path / "tools.json", '[{"type": "function", "function": {"name": "f"}}]')
    schema = written(tmp_path / "schema.json", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
    flags = ("--tools", str(tools), "--response-format", str(schema), "--extra-body", '{"temperature": 0.5}')
    with serving(says("a")) as server:
        common = ("--base-url", server.base_url, "--save-dir", str(tmp_path / "results"), "--max-concurrency", "1")
        told = load("run", *common, *flags, "--num-prompts", "2", "--turns", "2", "--isl", "9")
    assert told.exit_code in (0, 3), told.output
    assert "counted in words" in told.output
    first, second = server.bodies
    assert first["tools"][0]["function"]["name"] == "f" and first["temperature"] == 0.5
    assert first["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert [one["role"] for one in second["messages"]] == ["user", "assistant", "user"]


def test_results_that_cannot_be_saved_are_exit_code_2(truth: TruthServer, tmp_path: Path) -> None:
    no_folder = written(tmp_path / "file", "")
    told = run(truth, no_folder, "--num-prompts", "2", "--max-concurrency", "1")
    assert told.exit_code == 2 and f"nothing can be saved in --save-dir {no_folder}" in told.output
    assert not truth.take_log().written, "known before the load"


@pytest.mark.slow
def test_ctrl_c_saves_what_was_seen(truth: TruthServer, tmp_path: Path) -> None:
    code = "from loadtest.cli import load_app; load_app()"
    arguments = ["run", "--base-url", truth.base_url, "--save-dir", str(tmp_path), "--isl", "5", "--osl", "4"]
    arguments += ["--request-rate", "20", "--num-prompts", "4000"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    until_s = time.monotonic() + 60
    while not (seen := [one for one in truth.take_log().written if one.status == 200]) and time.monotonic() < until_s:
        time.sleep(0.2)
    assert seen, "nothing was sent"
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in told
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert report["interrupted"] and report["total"]["outcomes"]["ok"] >= 1
    (records,) = (read_records(path) for path in tmp_path.glob("*.jsonl"))
    assert len(records) == report["total"]["due"] < 4000


@pytest.mark.slow
def test_calibration_measures_each_load(truth: TruthServer) -> None:
    found = load("calibrate", "--streams", "4", "--rate", "10", "--seconds", "0.5", "--osl", "4", "--json")
    assert found.exit_code == 0, found.output
    tree = json.loads(found.stdout)
    assert tree["closed"]["4"]["requests"] == tree["closed"]["4"]["completed"] == 8
    assert tree["open"]["10.0"]["completed"] == tree["open"]["10.0"]["requests"] > 0
    assert tree["closed"]["4"]["error"]["ttft"]["mean_ms"] > 0


def test_definitions_are_told() -> None:
    assert "attainment" in load("definitions").output


def test_the_same_plan_makes_the_same_bytes_and_another_seed_others() -> None:
    assert make_load(PLAN).jobs == make_load(PLAN).jobs != make_load(replace(PLAN, seed=4)).jobs
    shorter = make_load(replace(PLAN, input_words=3)).jobs
    assert [one.due_s for one in shorter] == [one.due_s for one in make_load(PLAN).jobs]
    tree = json.loads(make_load(PLAN).jobs[0].body)
    assert len(tree["messages"][0]["content"].split()) == 10 and tree["max_completion_tokens"] == 4 and tree["stream"]


def test_a_closed_loop_has_no_due_times() -> None:
    jobs = make_load(replace(PLAN, request_rate_rps=math.inf)).jobs
    assert len(jobs) == 20 and all(one.due_s is None for one in jobs)


def test_ramps_bursts_and_rate_files(tmp_path: Path) -> None:
    timed = replace(PLAN, requests=None, duration_s=10.0, burstiness=math.inf)
    assert len(make_load(replace(timed, ramp_from_rps=0.0)).jobs) == 50
    assert len(make_load(replace(timed, bursts="1:1")).jobs) < 100
    file = written(tmp_path / "rates.csv", "0,1\n5,3\n")
    assert len(make_load(replace(timed, rate_file=file)).jobs) == 20


def test_a_trace_keeps_its_times_lengths_and_sessions(tmp_path: Path) -> None:
    load_ = make_load(replace(PLAN, trace=written(tmp_path / "b.csv", BURSTGPT)))
    assert [(one.session, one.turn, one.due_s) for one in load_.jobs] == [(0, 0, 0.0), (1, 0, 40.0), (0, 1, 60.0)]
    assert len(json.loads(load_.jobs[1].body)["messages"][0]["content"].split()) == 1087
    assert load_.notes[0].startswith("line 4 of ")


def test_sessions_with_pauses_begin_at_the_request_rate(tmp_path: Path) -> None:
    text = json.dumps(WEKA) + "\n" + json.dumps({**WEKA, "id": "t2"}) + "\n"
    plan = replace(PLAN, trace=written(tmp_path / "w.jsonl", text), burstiness=math.inf, request_rate_rps=0.5)
    jobs = make_load(plan).jobs
    assert len(jobs) == 8 and len({one.session for one in jobs}) == 4
    begins = sorted(one.due_s for one in jobs if one.turn == 0 and one.due_s is not None)
    assert begins == [0.0, 2.0, 8.0, 10.0]
    assert all((one.due_s is None) == (one.turn > 0) for one in jobs)
    rates = written(tmp_path / "rates.csv", "0,0.5\n3,0.5\n3,0\n")
    by_file = replace(plan, request_rate_rps=math.inf, rate_file=rates, duration_s=30.0)
    assert make_load(by_file).jobs == jobs
    rare = replace(by_file, rate_file=written(tmp_path / "rates.csv", "0,0.5\n1,0.5\n1,0\n"))
    assert {one.session for one in make_load(rare).jobs} == {0, 1}, "the other begins beyond the duration"


def test_flags_become_types() -> None:
    assert parse_slo(["ttft:500 tpot:50", "e2el:9000"], 0.9) == Slo(500, 50, 9000, None, 0.9)
    assert parse_header("A: b:c") == ("A", "b:c")
    assert spread_of(Family.WEIBULL, 2.0, 1.0) == Spread(Family.WEIBULL, 2.0)
    assert profile_of(5.0, 1.0, "", 10.0, np.random.default_rng(0)).knots == ((0, 1), (10, 5))
    with pytest.raises(LoadTestError):
        body("/v1/responses", "m", "hi", 1, stream=True)
