"""`ferry profile`: which loads it chooses, and that it measures what a server of known latencies does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loadtest.cli import load_app
from loadtest.profile import Facts, Reach, Trial, choose_trials, facts_of, measure
from loadtest.profile.design import LONGEST_TOKENS, TEMPLATE_TOKENS
from loadtest.profile.facts import read_metrics, read_models
from loadtest.profile.measure import bodies, output_lengths
from loadtest.truth import TruthConfig, TruthServer
from loadtest.types import LoadTestError, Target
from planner import read_load_point, read_profile
from serving.cli import app
from tests.loadtest.bad_servers import BadServer, in_turn, streams, whole

pytestmark = pytest.mark.slow

ENDPOINT = "/v1/completions"
# On a busy machine the client itself is late by some milliseconds.
LATE_MS = 12.0
METRICS = b"""\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0",num_gpu_blocks="182"} 1.0
vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="1",num_gpu_blocks="180"} 1.0
vllm:num_requests_running{engine="0"} 0.0
"""


def measured(truth: TruthServer, *trials: Trial) -> Sequence[object]:
    return measure(Target(truth.base_url, ENDPOINT), "truth", trials).done


def ferry(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["profile", *arguments])


@given(
    longest=st.integers(300, 200_000),
    seqs=st.none() | st.integers(1, 2_000),
    kv=st.none() | st.integers(400, 4_000_000),
    count=st.integers(6, 12),
)
def test_chosen_loads_stay_within_the_engine(longest: int, seqs: int | None, kv: int | None, count: int) -> None:
    trials = choose_trials(Reach(longest, seqs, kv), count=count, osl=64)
    assert len(trials) == len(set(trials)) <= count
    assert any(trial.concurrency == 1 for trial in trials)
    for trial in trials:
        assert trial.isl + trial.osl + TEMPLATE_TOKENS <= max(longest, LONGEST_TOKENS)
        assert trial.isl * 1.1 + trial.osl <= longest
        assert seqs is None or trial.concurrency <= seqs
        assert kv is None or trial.concurrency == 1 or trial.concurrency * (trial.isl + trial.osl) <= kv
        assert trial.requests >= trial.concurrency


def test_six_points_are_the_corners_and_what_lies_between() -> None:
    trials = choose_trials(Reach(4096, 32, 100_000), count=6)
    shorts, longs = {t.isl for t in trials if t.isl <= 32}, {t.isl for t in trials if t.isl > 2_000}
    assert shorts and longs
    assert {t.concurrency for t in trials if t.isl in shorts} == {1, 32}
    assert {min(t.concurrency, 2) for t in trials if t.isl in longs} == {1, 2}
    assert any(1 < t.concurrency < 32 and t.spread for t in trials)


@pytest.mark.parametrize(("count", "osl", "told"), [(5, 64, "--points is 5"), (13, 64, "--points"), (8, 4000, "--osl")])
def test_what_makes_no_profile_is_refused(count: int, osl: int, told: str) -> None:
    with pytest.raises(LoadTestError, match=told):
        choose_trials(Reach(4096, 32, None), count=count, osl=osl)


def test_outputs_are_drawn_apart_below_the_longest() -> None:
    lengths = output_lengths(Trial(10, 50, 4, 11, spread=0.6))
    assert (lengths.min(), lengths.max(), lengths.mean()) == (20, 50, 35)


def test_an_engine_that_was_measured_before_has_seen_none_of_the_prompts() -> None:
    trial = Trial(20, 50, 4, 8, spread=0.6)
    first, again = (
        [json.loads(one) for one in bodies(ENDPOINT, "m", trial, np.random.default_rng(3), salt, ignore_eos=True)]
        for salt in ("first", "again")
    )
    assert not {one["prompt"] for one in first} & {one["prompt"] for one in again}
    assert [one["max_tokens"] for one in first] == [one["max_tokens"] for one in again]


def test_points_are_what_the_server_does(truth: TruthServer) -> None:
    truth.change(TruthConfig(ttft_ms=80, gap_ms=15))
    (one, many) = measured(truth, Trial(20, 8, 1, 4), Trial(50, 12, 4, 12))
    for found in (one, many):
        point = found.point  # type: ignore[attr-defined]
        assert 80 <= point.ttft_ms.p50 < 80 + LATE_MS
        assert point.tpot_ms.p50 == pytest.approx(15, abs=4)
        assert point.ttft_ms.p50 <= point.ttft_ms.p90 <= point.ttft_ms.p99
    assert (one.point.osl, many.point.osl, many.point.requests) == (8, 12, 12)  # type: ignore[attr-defined]
    answer_s = (80 + 11 * 15) / 1e3
    assert many.point.out_tok_s == pytest.approx(4 * 12 / answer_s, rel=0.2)  # type: ignore[attr-defined]


def test_a_queue_is_measured_as_one(truth: TruthServer) -> None:
    """Two places for six clients: after the start each waits for two answers before its own begins."""
    truth.change(TruthConfig(ttft_ms=20, gap_ms=10, slots=2))
    (found,) = measured(truth, Trial(10, 11, 6, 30))
    answer_ms = 20 + 10 * 10
    assert found.point.ttft_ms.p50 == pytest.approx(2 * answer_ms + 20, abs=40)  # type: ignore[attr-defined]


def test_a_load_that_fails_makes_no_point(truth: TruthServer) -> None:
    truth.change(TruthConfig(ttft_ms=5, gap_ms=1, error_share=1.0))
    with pytest.raises(LoadTestError, match="as it was told to"):
        measured(truth, Trial(10, 4, 1, 2))


def test_a_load_that_fails_later_keeps_those_before(truth: TruthServer) -> None:
    truth.change(TruthConfig(ttft_ms=5, gap_ms=1))
    found = measure(
        Target(truth.base_url, ENDPOINT), "truth", [Trial(10, 4, 1, 2)] * 3,
        on_point=lambda _: truth.change(TruthConfig(error_share=1.0)),
    )  # fmt: skip
    assert len(found.done) == 1 and "as it was told to" in str(found.stopped)


def test_the_command_keeps_the_loads_before_one_that_fails(truth: TruthServer, tmp_path: Path) -> None:
    """One place for eight clients: those that wait are out of time."""
    truth.change(TruthConfig(ttft_ms=50, gap_ms=20, slots=1))
    out = tmp_path / "mine.yaml"
    told = ferry(
        "--base-url", truth.base_url, "--shape", "smollm2-135m", "--system", "here", "--kind", "cpu",
        "--max-num-seqs", "8", "--max-model-len", "512", "--points", "6", "--osl", "8", "--timeout-s", "0.8",
        "--out", str(out),
    )  # fmt: skip
    points = read_profile(out).points
    assert told.exit_code == 2 and f"{len(points)} of 6 loads were measured" in told.output, told.output
    assert points and all(point.concurrency < 8 for point in points)


def test_facts_are_what_the_pages_say(truth: TruthServer) -> None:
    assert read_metrics(METRICS) == (180, 128)
    assert read_models(b'{"data":[{"id":"m","max_model_len":4096}]}') == ("m", 4096)
    # The truth server gives its list of models on every page: what is not there stays unknown.
    assert facts_of(Target(truth.base_url, ENDPOINT)) == Facts(model="truth")
    assert Facts(kv_blocks=180, block_size_tokens=128).kv_tokens == 23_040


def test_the_command_writes_a_profile_that_the_planner_reads(truth: TruthServer, tmp_path: Path) -> None:
    truth.change(TruthConfig(ttft_ms=30, gap_ms=4))
    out = tmp_path / "mine.yaml"
    told = ferry(
        "--base-url", truth.base_url, "--shape", "smollm2-135m", "--system", "here", "--kind", "cpu",
        "--max-num-seqs", "3", "--kv-blocks", "60", "--block-size", "16", "--max-model-len", "512",
        "--points", "6", "--osl", "8", "--out", str(out),
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    profile = read_profile(out)
    assert profile.document() == yaml.safe_load(out.read_text())
    assert (profile.model, profile.system, profile.kv_blocks, profile.async_scheduling) == (
        "smollm2-135m", "here", 60, False,
    )  # fmt: skip
    assert 5 <= len(profile.points) <= 6
    assert "error to expect here" in told.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--base-url", "http://127.0.0.1:9"], "cannot reach 127.0.0.1:9/v1/models"),
        (["--points", "3"], "--points is 3"),
        (["--kind", "abacus"], "kind is 'abacus'"),
        (["--tp", "0"], "tp is 0"),
        (["--out", "missing/p.yaml"], "--out missing/p.yaml cannot be written"),
        (["--out", "/"], "--out / cannot be written"),
    ],
)
def test_what_cannot_be_is_exit_code_2_with_a_reason_before_anything_is_measured(
    truth: TruthServer, tmp_path: Path, arguments: list[str], told: str
) -> None:
    out = tmp_path / "p.yaml"
    found = ferry("--base-url", truth.base_url, "--system", "here", "--out", str(out), *arguments)
    assert found.exit_code == 2 and told in found.output and "Traceback" not in found.output
    assert not out.exists() and not truth.take_log().written


def test_what_a_profile_file_holds_stays_until_there_is_another(truth: TruthServer, tmp_path: Path) -> None:
    out = tmp_path / "p.yaml"
    out.write_text("mine")
    assert ferry("--base-url", truth.base_url, "--system", "here", "--out", str(out), "--points", "3").exit_code == 2
    assert out.read_text() == "mine"


def in_one_piece(tokens: int) -> dict[str, object]:
    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
    return {"id": "r", "choices": [{"index": 0, "text": "a", "finish_reason": "length"}], "usage": usage}


def test_a_server_that_does_not_stream_is_told(tmp_path: Path) -> None:
    with BadServer({ENDPOINT: whole(in_one_piece(2))}) as server:
        found = ferry(
            "--base-url", server.base_url, "--system", "here", "--osl", "2", "--max-model-len", "512",
            "--max-num-seqs", "1", "--out", str(tmp_path / "p.yaml"),
        )  # fmt: skip
    assert found.exit_code == 2 and "does not stream" in found.output, found.output
    assert "only 4 of 8 loads" in found.output, "one sequence: only the lengths of prompts differ"


def test_answers_in_one_piece_later_keep_the_loads_before() -> None:
    few = Trial(10, 2, 1, 2)
    streamed = [streams({"id": "r", "choices": [{"index": 0, "text": "a"}]}, "[DONE]")] * (2 * 2 + few.requests)
    with BadServer({ENDPOINT: in_turn(*streamed, whole(in_one_piece(2)))}) as server:
        found = measure(Target(server.base_url, ENDPOINT), "m", [few, few])
    assert len(found.done) == 1 and "does not stream" in str(found.stopped)


def test_a_saved_load_test_is_a_point_too(truth: TruthServer, tmp_path: Path) -> None:
    truth.change(TruthConfig(ttft_ms=60, gap_ms=10))
    common = ["--base-url", truth.base_url, "--save-dir", str(tmp_path), "--isl", "9", "--osl", "6"]
    told = CliRunner().invoke(load_app, ["run", *common, "--max-concurrency", "2", "--num-prompts", "8"])
    assert told.exit_code in (0, 3), told.output
    (file,) = tmp_path.glob("*.json")
    tree = json.loads(file.read_text())
    tree["verdict"] = "no SLO"  # a machine that is busy enough would make it INVALID
    file.write_text(json.dumps(tree))
    point = read_load_point(file)
    assert (point.concurrency, point.osl, point.requests) == (2, 6, 8)
    assert 60 <= point.ttft_ms.mean < 60 + LATE_MS
    assert point.tpot_ms is not None and math.isclose(point.tpot_ms.p50, 10, abs_tol=4)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format": "something/1"}, "format"),
        ({"verdict": "INVALID"}, "verdict"),
        ({"total": {"outcomes": {"ok": 3, "shed": 1}}}, "total.outcomes"),
        ({"total": {"outcomes": {"ok": 3}}}, "isl"),
    ],
)
def test_a_load_report_that_tells_nothing_is_refused(tmp_path: Path, change: dict[str, object], key: str) -> None:
    from planner import PlannerError

    file = tmp_path / "load.json"
    file.write_text(json.dumps({"format": "ferry-load/1", "verdict": "met", **change}))
    with pytest.raises(PlannerError) as refused:
        read_load_point(file)
    assert refused.value.key == key
