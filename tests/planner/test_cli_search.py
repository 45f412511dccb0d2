"""`ferry plan`: the plan that is written, what is told of it, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner import read_plan, read_slo
from planner.questions import QuestionFile, question_file, question_of
from planner.report.answers import Aim
from tests.planner.command import ferry, plan, refused, tree_of

ANYWHERE = (
    "--model", "Llama-3.1-8B", "--ttft", "1500", "--tpot", "80", "--isl", "500", "--osl", "100",
    "--request-rate", "3", "--verify-top", "2", "--today", "2026-11-25",
)  # fmt: skip
SMALL = (*ANYWHERE, "--system", "l40s")
SLO = "classes: {chat: {ttft_ms: 1500, tpot_ms: 80, attainment: 0.95}}"
WORKLOAD = """
streams:
  chat: {lengths: {kind: constant, isl: 500, osl: 100}, arrivals: {kind: poisson, rate_rps: 3}}
"""
QUESTION = """
model: Llama-3.1-8B
slo: slo.yaml
workload: workload.yaml
system: [l40s]
verify_top: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("slo.yaml", SLO), ("workload.yaml", WORKLOAD), ("question.yaml", QUESTION)):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_answer_in_json_holds_the_plan_that_is_written(tmp_path: Path) -> None:
    told = plan(*SMALL, "--json", "-o", str(tmp_path / "plan.yaml"))
    assert told.exit_code == 0, told.output
    tree = tree_of(told)
    written = read_plan(tmp_path / "plan.yaml")
    assert tree["feasible"] is True and tree["plan"] == written.document() == tree["cheapest"]["plan"]
    assert {pool.device for pool in written.pools.values()} <= {"l40s", "l40s:1/2", "l40s:1/4"}
    assert all(found.met for found in written.prediction.classes.values())
    assert tree["considered"] >= tree["fitting"] >= tree["verified"] >= 1


def test_blocks_are_such_that_the_device_takes(tmp_path: Path) -> None:
    asked = (*ANYWHERE[:2], "--ttft", "60000", "--tpot", "2000", *ANYWHERE[6:10], "--request-rate", "0.05")
    for system, block_tokens in (("cpu_epyc_9654", 128), ("l40s", 16)):
        told = plan(*asked, "--system", system, "--today", "2026-11-25", "-o", str(tmp_path / "plan.yaml"))
        assert told.exit_code == 0, told.output
        for pool in read_plan(tmp_path / "plan.yaml").pools.values():
            assert pool.engine.block_size == block_tokens
            held_tokens = pool.engine.num_gpu_blocks_override * block_tokens
            assert pool.kv_tokens - 2 * block_tokens < held_tokens < pool.kv_tokens + 2 * block_tokens


def test_people_see_plans_reasons_and_doubts(tmp_path: Path) -> None:
    told = ferry("plan", *SMALL, "--explain", "--save-dir", str(tmp_path / "made" / "here"))
    assert told.exit_code == 0, told.output
    for word in (
        "cheapest",
        "the cheapest plan:",
        "P(SLO met)",
        "why:",
        "what if:",
        "vllm serve Llama-3.1-8B",
        "USD/h",
    ):
        assert word in told.stdout
    made = tmp_path / "made" / "here"
    assert sorted(path.name for path in made.iterdir()) == ["answer.json", "plan.yaml", "plans.html"]
    assert json.loads((made / "answer.json").read_text())["plan"] == read_plan(made / "plan.yaml").document()
    assert "<svg" in (made / "plans.html").read_text()


def test_old_prices_are_told_by_the_day_that_it_is(tmp_path: Path) -> None:
    told = tree_of(plan(*SMALL, "--json", "--today", "2028-01-01"))["warnings"]
    assert any("days old" in warning and "l40s" in warning for warning in told)
    assert not any("days old" in warning for warning in tree_of(plan(*SMALL, "--json"))["warnings"])


def test_the_plot_is_written_by_its_ending(tmp_path: Path) -> None:
    for name, begins in (("p.svg", b"<svg"), ("p.html", b"<!doctype html>")):
        assert plan(*SMALL, "--plot", str(tmp_path / name)).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_aim_decides_what_is_written(tmp_path: Path) -> None:
    for aim in Aim:
        tree = tree_of(plan(*SMALL, "--json", "--optimise", aim.value, "-o", str(tmp_path / f"{aim}.yaml")))
        key = "fewest_gpus" if aim is Aim.FEWEST else aim.value
        assert tree["aim"] == aim.value and tree["plan"] == tree[key]["plan"]
        assert read_plan(tmp_path / f"{aim}.yaml").document() == tree["plan"]


@pytest.mark.slow
def test_what_cannot_be_is_exit_code_3_with_what_binds_and_the_ways_out() -> None:
    impossible = (*SMALL, "--tpot", "0.5")
    told = plan(*impossible, "--json")
    assert told.exit_code == 3, told.output
    tree = tree_of(told)
    assert tree["feasible"] is False and tree["constraint"] == "tpot" and tree["nearest"]
    told = plan(*impossible)
    assert told.exit_code == 3 and "no plan holds the SLO" in told.stdout and "nearest" in told.stdout


def test_no_room_anywhere_is_an_answer_too() -> None:
    told = plan(*ANYWHERE, "--model", "Kimi-K2", "--system", "l4", "--json")
    assert told.exit_code == 3, told.output
    assert tree_of(told)["constraint"] == "memory"


def test_a_question_file_is_as_good_as_flags_and_flags_override_it(folder: Path) -> None:
    question = ("--question", str(folder / "question.yaml"), "--json", "--today", "2026-11-25")
    by_file = tree_of(plan(*question))
    files = ("--slo", str(folder / "slo.yaml"), "--workload", str(folder / "workload.yaml"))
    by_flags = tree_of(
        plan("search", "--model", "Llama-3.1-8B", "--system", "l40s", "--verify-top", "2", *files, *question[2:])
    )
    assert by_file == by_flags
    changed = tree_of(plan(*question, "--system", "h100_sxm"))
    assert "h100_sxm" in json.dumps(changed["plan"]["pools"]) and "l40s" not in json.dumps(changed["plan"]["pools"])


def test_fractions_can_be_ruled_out() -> None:
    tree = tree_of(plan(*SMALL, "--no-fractions", "--json"))
    assert {pool["device"] for pool in tree["plan"]["pools"].values()} == {"l40s"}


def test_without_a_rate_the_answer_is_the_most_that_the_gpus_bear() -> None:
    rateless = tuple(word for word in SMALL if word not in ("--request-rate", "3"))
    tree = tree_of(plan(*rateless, "--total-gpus", "2", "--json"))
    assert tree["feasible"] and tree["cheapest"]["plan"]["traffic"]["rate_rps"] > 3


def test_callers_and_a_shared_beginning_are_traffic_too(folder: Path) -> None:
    told = {"model": "Llama-3.1-8B", "tpot_ms": 50, "e2e_ms": 9000, "isl": 900, "osl": 90, "prefix": 300}
    asked = question_of(question_file(told | {"concurrency": 12}, file="settings"), folder)
    sample = asked.workload.sample(0, 100)
    assert sample.arrival_s is None and set(sample.prefix_tokens.tolist()) == {300} and not asked.maximise_rate
    assert set(asked.slo.of("requests").latencies) == {"tpot", "e2e"}


def test_flags_are_read_as_one_question(folder: Path) -> None:
    asked = question_of(
        question_file(
            {
                "model": "Llama-3.1-8B", "ttft_ms": 500, "statistic": "mean", "isl": 10, "osl": 20, "total_gpus": 4,
                "spot": {"market": "gcp_a100_2021", "notice": "gcp", "least_on_demand": 1}, "quant": ["none", "fp8"],
                "pools": "mixed",
            },
            file="settings",
        ),
        folder,
    )  # fmt: skip
    assert asked.maximise_rate and asked.total_gpus == 4 and asked.space.quants == (None, "fp8")
    assert asked.space.mixed and not asked.space.disaggregated
    assert asked.spot is not None and asked.spot.notice.lead_s == 30 and asked.spot.least_on_demand == 1
    assert asked.slo.of("requests").ttft_ms is not None and asked.slo.of("requests").targets[0].percentile is None
    assert len(asked.devices) > 10 and all(asked.prices.has(device) for device in asked.devices)
    assert asked.workload.mean_rate_rps("requests") == 1.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("model is missing", "add model")),
        (("--model", "Llama-3.1-8B"), ("slo is missing", "ttft_ms and tpot_ms")),
        (("--model", "Llama-3.1-8B", "--ttft", "500"), ("isl is missing",)),
        (("--model", "Llama-3.1-8B", "--ttft", "500", "--isl", "9", "--osl", "9"), ("request_rate is missing",)),
        ((*SMALL, "--ttft", "-5"), ("ttft_ms is -5.0", "greater than 0")),
        ((*SMALL, "--statistic", "p42"), ("statistic is 'p42'", "p50")),
        ((*ANYWHERE, "--system", "l40s,h101_sxm"), ("system is 'h101_sxm'", "h100_sxm")),
        ((*SMALL, "--model", "Lama-3.1-8B"), ("model is 'Lama-3.1-8B'", "Llama-3.1-8B")),
        ((*SMALL, "--quant", "int3"), ("int3", "int4")),
        ((*ANYWHERE, "--system", "ascend_910b3"), ("nobody is known to offer it", "prices file")),
        ((*SMALL, "--spot", "mars"), ("markets is 'mars'", "no such market")),
        ((*SMALL, "--confidence", "1.5"), ("confidence is 1.5",)),
        ((*SMALL, "--target-concurrency", "9"), ("concurrency is 9", "request_rate is given too")),
        ((*SMALL, "--pools", "three"), ("pools is 'three'", "mixed")),
        ((*SMALL, "--prices", "none.yaml"), ("none.yaml", "cannot be read")),
        ((*SMALL, "--backend", "sglang"), ("--backend is 'sglang'", "vLLM")),
        ((*SMALL, "--plot", "plot.pdf"), ("--plot is 'plot.pdf'", ".png, .svg or .html")),
        ((*SMALL, "-o", "no/such/folder/plan.yaml"), ("no/such/folder/plan.yaml", "cannot be written")),
        ((*SMALL, "--isl", "4000000"), ("tokens at most",)),
        ((*SMALL, "--isl", "9" * 30), ("isl", "less than or equal to 10000000")),
        ((*SMALL, "--request-rate", "1e308"), ("request_rate is 1e+308", "less than or equal to")),
        ((*SMALL, "--request-rate", "inf"), ("request_rate is inf", "finite")),
    ],
)
def test_bad_flags_are_one_line_with_a_remedy(flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(plan("search", *flags), *words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("question.yaml", "modle: x", ("question.yaml: modle is 'x'", "did you mean model")),
        ("question.yaml", QUESTION + "ttft_ms: 5\n", ("ttft_ms is 5", "the SLO file slo.yaml promises too")),
        ("question.yaml", QUESTION + "isl: 5\n", ("isl is 5", "the workload workload.yaml says so too")),
        ("question.yaml", QUESTION + "spot: {notice: gcp}\n", ("spot.market is missing",)),
        ("slo.yaml", "classes: {chat: {ttft_ms: -1}}", ("slo.yaml: classes.chat.ttft_ms", "-1", "greater than 0")),
        ("slo.yaml", "classes: {chat: {ttft_ms: 900, e2e_ms: 500}}", ("slo.yaml: classes.chat.e2e_ms is 500", "raise")),
        ("slo.yaml", "classes: {chat: {ttft_ms: {p50: 9, p90: 5}}}", ("slo.yaml: classes.chat.ttft_ms.p50 is 9",)),
        ("slo.yaml", SLO.replace("chat", "rag"), ("workload.yaml: streams.rag",)),
        ("slo.yaml", SLO.replace("tpot_ms", "rate_rps: 99, tpot_ms"), ("workload.yaml", "99 requests/s", "equal")),
        ("workload.yaml", WORKLOAD.replace("isl", "isle"), ("workload.yaml: streams.chat.lengths.isle", "isl")),
        ("workload.yaml", "streams: {chat: {}}", ("workload.yaml: streams.chat.lengths is missing",)),
    ],
)
def test_bad_documents_are_one_line_that_names_file_key_and_remedy(
    folder: Path, name: str, content: str, words: tuple[str, ...]
) -> None:
    (folder / name).write_text(content)
    refused(plan("--question", str(folder / "question.yaml")), *words)


def test_a_trace_with_a_gap_names_the_line(folder: Path) -> None:
    (folder / "t.csv").write_text("arrival_s,isl,osl\n0,10,5\n1,10,5\n9000,10,5\n")
    (folder / "workload.yaml").write_text("streams: {chat: {trace: {path: t.csv, format: ferry}}}")
    told = plan("--question", str(folder / "question.yaml"))
    refused(told, "t.csv: line 4", "gap", "max_gap_s")


def test_an_unknown_field_of_a_model_is_named(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": -3}))
    told = plan("--question", str(folder / "question.yaml"), "--model", str(folder / "model"))
    refused(told, "config.json", "hidden_size is -3", "correct hidden_size")


def test_a_device_without_a_needed_figure_is_named(folder: Path) -> None:
    (folder / "own.yaml").write_text("devices: {mine: {bf16_tflops: 100, memory_tb_s: 1, memory_gib: 40}}")
    (folder / "prices.yaml").write_text(
        "offers: [{device: mine, provider: us, on_demand_usd_per_hour: 1, seen: 2026-11-20}]"
    )
    question = (
        "--question",
        str(folder / "question.yaml"),
        "--system",
        "mine",
        "--prices",
        str(folder / "prices.yaml"),
    )
    refused(plan(*question, "--devices", str(folder / "own.yaml"), "--quant", "fp8"), "mine.fp8_tflops is missing")
    (folder / "own.yaml").write_text("devices: {mine: {bf16_tflops: 100, memory_gib: 40}}")
    refused(plan(*question, "--devices", str(folder / "own.yaml")), "own.yaml", "mine.memory_tb_s is missing", "add")


def test_an_aim_a_question_has_what_its_file_says(folder: Path) -> None:
    asked = question_of(
        question_file({"model": "Llama-3.1-8B", "slo": "slo.yaml", "workload": "workload.yaml"}, file="q"), folder
    )
    assert asked.slo == read_slo(folder / "slo.yaml") and not asked.maximise_rate
    assert (
        QuestionFile.model_validate({"model": "m", "tpot_ms": 5, "isl": 1, "osl": 1, "request_rate": 1.0}).pools
        == "any"
    )
