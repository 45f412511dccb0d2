"""`ferry load search` on a server that is a queue: its capacity is known in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtest.cli import load_app
from loadtest.cli_groups import GoalFlags
from loadtest.cli_search import slo_of_all
from loadtest.truth import Law, Queue, TruthConfig, TruthServer

pytestmark = pytest.mark.slow

# Four slots, like an engine's: attainment falls steeply once they are busy.
SERVICE_MS, LIMIT_MS, WANTED = 20.0, 40.0, 0.9
TRUTH = TruthConfig(ttft_ms=SERVICE_MS, ttft_law=Law.FIXED, slots=4, tokens=1)
KNOWN_RPS = Queue.of(TRUTH).capacity_rps(LIMIT_MS / 1e3, WANTED)


def search(truth: TruthServer, folder: Path, *more: str) -> Result:
    flags = ["search", "--base-url", truth.base_url, "--model", "truth", "--isl", "4", "--osl", "1", "--json"]
    flags += ["--goodput", f"ttft:{LIMIT_MS}", "--slo-attainment-fraction", str(WANTED), "--save-dir", str(folder)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(load_app, [*flags, *more])


def test_the_known_capacity_is_found_and_its_runs_are_kept(tmp_path: Path) -> None:
    page = ("--html", str(tmp_path / "page.html"))
    with TruthServer(TRUTH) as truth:
        found = search(truth, tmp_path, "--start-rate", "100", "--precision", "0.1", "--max-time-s", "25", *page)
    assert found.exit_code in (0, 1), found.output  # 1: a busy machine was too noisy to be sure in time
    tree = json.loads(found.stdout.splitlines()[-1])
    assert tree["format"] == "ferry-search/1" and tree["statement"] in found.output.replace("\n", " ")
    # In 25 s no more than its bracket is sure; how exact a whole search is: test_rates, tests/bench/load_search.py.
    assert tree["capacity_rps"] == pytest.approx(KNOWN_RPS, rel=0.4)
    assert all((tmp_path / run["report"]).is_file() for run in tree["runs"])
    assert len(list(tmp_path.glob("search-*.json"))) == 1
    written = (tmp_path / "page.html").read_text()
    assert tree["statement"] in written and "SLO 40 ms" in written and "90 % must" in written
    assert "<script" not in written and "http://" not in written.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--goodput", "ttft:-1"], "--goodput"),
        (["--min-rate", "5", "--start-rate", "1"], "--min-rate"),
        (["--precision", "2"], "--precision"),
        (["--slo-attainment-fraction", "1"], "0.99"),
    ],
)
def test_odd_questions_are_refused_before_any_request(flags: list[str], word: str, tmp_path: Path) -> None:
    with TruthServer(TRUTH) as truth:
        found = search(truth, tmp_path, *flags)
        assert found.exit_code == 2 and word in found.output
        assert not truth.take_log().written


ONE_CLASS = "classes: {chat: {ttft_ms: 512, attainment: 0.9}}"
TWO_CLASSES = "classes: {chat: {ttft_ms: 512, attainment: 0.9}, batch: {e2e_ms: 9000}}"


def test_the_page_of_a_sweep_draws_the_slo_that_all_requests_have(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(ONE_CLASS)
    two.write_text(TWO_CLASSES)
    workload = tmp_path / "workload.yaml"
    for goal, given, ttft_ms in (
        (GoalFlags(goodput=["ttft:300"]), workload, 300),
        (GoalFlags(slo=one), None, 512),
        (GoalFlags(slo=one), workload, 512),
        (GoalFlags(slo=two, slo_class="chat"), None, 512),
    ):
        found = slo_of_all(goal, given)
        assert found is not None and found.ttft_ms == ttft_ms
    assert slo_of_all(GoalFlags(slo=two), workload) is None


def test_a_sweep_lists_its_rates_and_marks_the_knee(tmp_path: Path) -> None:
    slo, page = tmp_path / "slo.yaml", tmp_path / "page.html"
    slo.write_text(ONE_CLASS)
    flags = ["--model", "truth", "--isl", "4", "--osl", "1", "--json", "--save-dir", str(tmp_path)]
    flags += ["--slo", str(slo), "--html", str(page)]
    with TruthServer(TRUTH) as truth:
        found = CliRunner(env={"COLUMNS": "200"}).invoke(
            load_app,
            ["sweep", "--base-url", truth.base_url, "--rates", "5,250", "--seconds", "3", "--warmup-s", "0", *flags],
        )
    assert found.exit_code in (0, 3), found.output  # 3: the client was late on a busy machine
    tree = json.loads(found.stdout.splitlines()[-1])
    assert [row["rate_rps"] for row in tree["rates"]] == [5, 250] and tree["knee_rps"] == 5
    assert "SLO 512 ms" in page.read_text() and "90 % must" in page.read_text()
    reports = [str(tmp_path / row["report"]) for row in tree["rates"]]
    compared = CliRunner(env={"COLUMNS": "200"}).invoke(load_app, ["compare", *reports, "--json"])
    assert compared.exit_code == 1, compared.output
    changes = {row["metric"]: row["change"] for row in json.loads(compared.stdout.splitlines()[-1])["differences"]}
    assert changes["TTFT p50"] == "worse"
    assert CliRunner().invoke(load_app, ["compare", *reports, "--fail-on", "never"]).exit_code == 0
