"""Results of other tools as ours and back: what they mean by their words, and what they do not say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.cli import load_app
from loadtest.document import Document, decode, encode
from loadtest.exchange.read import read_results
from loadtest.exchange.shaping import FAILED
from loadtest.exchange.vllm_bench import write_vllm_bench
from loadtest.page.page import page
from loadtest.report import as_json, build
from loadtest.results import save
from loadtest.saved import SavedRun, read_run
from loadtest.types import Limits, LoadTestError, Outcome, Record
from tests.loadtest.builders import MS, record
from tests.loadtest.test_results import result, some

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> list[Document]:
    return read_results((GOLDEN / name).read_bytes(), name)


def test_vllm_bench_counts_from_the_sending() -> None:
    (found,) = golden("vllm_bench.json")
    total = found.total
    assert set(total.metrics) == {"ttft_net", "tpot", "gap", "e2e_net"}, "no figure of it counts from the due time"
    assert total.metrics["ttft_net"].completed_ms == {"p50": 110.0, "p99": 260.25}
    assert total.metrics["tpot"].completed_ms["p99.9"] == 24.5
    assert total.outcomes == {"ok": 196, FAILED: 4} and total.due == 200 and total.due_rps == 10
    assert total.attainment is not None and total.attainment.met == 180 and total.attainment.share == 0.9
    assert total.mean_prompt_tokens == 500 and total.mean_output_tokens == 100
    assert not total.metrics["ttft_net"].all_ms, "with failures nothing is known of all requests"
    assert {"metrics.ttft", "metrics.e2e", "metrics.max_gap", "client", "started_at_s"} <= set(found.missing)
    assert found.client is None and found.source is not None and found.spec["models"] == ["small/model"]


def test_a_run_of_which_nothing_completed_has_no_latencies_and_an_appended_file_several_runs() -> None:
    broken, whole = golden("vllm_bench_appended.json")
    assert broken.total.metrics == {} and broken.total.outcomes == {FAILED: 10}
    assert broken.total.mean_output_tokens is None and broken.total.goodput_rps is None
    assert whole.total.outcomes == {"ok": 10}, "older files have no count of failures: it is what is left"
    assert whole.total.metrics["ttft_net"].all_ms == {"p50": 48.0, "p99": 60.0}
    assert "metrics.tpot" in whole.missing and "slo" in whole.missing and whole.run_id != broken.run_id
    assert whole.spec["limits"] == {"concurrency": 4}


def test_aiperf_names_its_units() -> None:
    (found,) = golden("profile_export_aiperf.json")
    total = found.total
    assert total.metrics["tpot"].mean_ms == pytest.approx(11.5) and total.metrics["tpot"].max_ms == pytest.approx(20)
    assert total.metrics["e2e_net"].completed_ms["p95"] == 1450 and "gap" not in total.metrics
    assert total.outcomes == {"ok": 190, FAILED: 10} and total.goodput_rps == 9.0 and total.due_rps == 10
    assert found.started_at_s == 1795515300 and found.source is not None and found.source.version == "0.13.0"
    assert found.spec["limits"] == {"concurrency": 16}


def test_with_errors_and_no_count_of_what_completed_nothing_is_known_of_all_requests() -> None:
    tree = json.loads((GOLDEN / "profile_export_aiperf.json").read_text()) | {"request_count": None}
    (found,) = read_results(json.dumps(tree).encode(), "it")
    assert found.total.due is None and found.total.outcomes == {FAILED: 10}
    assert found.total.metrics["ttft_net"].completed_ms and not found.total.metrics["ttft_net"].all_ms
    exported = write_vllm_bench(found, ())
    assert "completed" not in exported and "failed" not in exported, "not told, and so not 0"


def test_guidellm_has_one_document_per_load_and_its_zeros_are_no_values() -> None:
    first, second = golden("guidellm_benchmarks.json")
    assert first.total.outcomes == {"ok": 150, "incomplete": 30, "errored": 20} and first.total.due_rps == 10
    assert first.total.metrics["ttft_net"].completed_ms["p99.9"] == 390 and first.total.output_tokens_per_s == 750
    assert first.total.metrics["tpot_with_ttft"].mean_ms == 13.1 and first.total.metrics["tpot"].count is None
    assert first.total.metrics["e2e_net"].mean_ms == pytest.approx(1310)
    assert first.started_at_s == 1795500000
    assert set(second.total.metrics) == {"e2e_net"}, "an answer without a stream has no TTFT, and not one of 0 ms"
    assert second.total.mean_prompt_tokens is None and second.started_at_s is None
    assert second.spec["limits"] == {"concurrency": 8}


def test_inference_perf_counts_in_seconds_and_tells_token_gaps_apart() -> None:
    (found,) = golden("inference_perf_summary.json")
    total = found.total
    assert total.outcomes == {"ok": 180, FAILED: 20} and total.due_rps == 10 and total.output_tokens_per_s == 756
    assert total.metrics["ttft_net"].completed_ms == {"p50": 240, "p90": 400, "p99": 490}
    assert total.metrics["e2e_net"].completed_ms["p99.9"] == 2000 and total.metrics["e2e_net"].max_ms == 2000
    assert total.metrics["tpot"].mean_ms == total.metrics["gap"].mean_ms == 12.5
    assert total.metrics["gap"].completed_ms["p99"] == 80 and "tpot_with_ttft" not in total.metrics
    assert total.mean_prompt_tokens == 100 and total.mean_output_tokens == 84
    assert total.attainment is None and "metrics.ttft" in found.missing


STREAMED = {"ttft_net", "gap", "tpot", "e2e_net"}
NOTHING = {"count": 0, "latency": dict.fromkeys(("request_latency", "time_to_first_token", "inter_token_latency"))}


@pytest.mark.parametrize(
    ("other", "outcomes", "metrics", "good", "asked"),
    [
        pytest.param({}, {"ok": 180, FAILED: 20}, STREAMED, None, (None, None), id="a run"),
        pytest.param(
            {"load_summary": {"count": 200, "requested_rate": 10.0}},
            {"ok": 180, FAILED: 20}, STREAMED, None, (10.0, None),
            id="a stage of a rate",
        ),
        pytest.param(
            {"load_summary": {"count": 180, "requested_rate": 4.0, "concurrency": 8}, "failures": {"count": 0}},
            {"ok": 180}, STREAMED, None, (4.0, 8),
            id="a stage of a closed loop",
        ),
        pytest.param(
            {"successes": {"count": 100, "latency": {"request_latency": {"mean": 2.0, "max": 3.0}, **dict.fromkeys(
                ("time_to_first_token", "time_per_output_token", "inter_token_latency"))}}},
            {"ok": 100, FAILED: 20}, {"e2e_net"}, None, (None, None),
            id="answers without a stream",
        ),
        pytest.param(
            {"successes": {"count": 100, "latency": {}, "goodput_metrics": {"good_requests": 90}}},
            {"ok": 100, FAILED: 20}, set(), 90, (None, None),
            id="an SLO, missed by what failed as well",
        ),
        pytest.param({"successes": NOTHING}, {FAILED: 20}, set(), None, (None, None), id="nothing came"),
    ],
)  # fmt: skip
def test_inference_perf_in_its_variants(
    other: dict[str, Any],
    outcomes: dict[str, int],
    metrics: set[str],
    good: int | None,
    asked: tuple[float | None, int | None],
) -> None:
    tree = json.loads((GOLDEN / "inference_perf_summary.json").read_text()) | other
    (found,) = read_results(json.dumps(tree).encode(), "it")
    assert found.total.outcomes == outcomes and set(found.total.metrics) == metrics
    assert (found.spec["request_rate"], found.spec["limits"]["concurrency"]) == asked
    attained = found.total.attainment
    assert (attained.met if attained else None) == good
    assert attained is None or attained.due == sum(outcomes.values())
    assert decode(encode(found), "it") == found


@pytest.mark.parametrize("name", [path.name for path in sorted(GOLDEN.glob("*.json"))])
def test_a_document_comes_back_from_its_bytes_and_makes_a_page(name: str) -> None:
    for found in golden(name):
        assert decode(encode(found), "it") == found
        text = page(SavedRun(found))
        assert "Imported from" in text and "Missing, since the source does not say it" in text
    assert [one.run_id for one in golden(name)] == [one.run_id for one in golden(name)]


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"no json", b'{"benchmarks": [{}]}', b"\xff"])
def test_a_file_of_nobody_is_refused(data: bytes) -> None:
    with pytest.raises(LoadTestError):
        read_results(data, "it")


@pytest.mark.parametrize(
    "broken",
    [
        {"duration": None, "completed": "many"},
        {"duration": 0.0},
        {"mean_ttft_ms": "fast", "p99_tpot_ms": None},
        {"num_prompts": None, "failed": None},
    ],
)
def test_odd_values_are_missing_and_no_crash(broken: dict[str, Any]) -> None:
    tree = json.loads((GOLDEN / "vllm_bench.json").read_text()) | broken
    (found,) = read_results(json.dumps(tree).encode(), "it")
    assert decode(encode(found), "it").run_id == found.run_id


def test_ours_in_the_shape_of_vllm_bench(tmp_path: Path) -> None:
    records = [*some(10), record([1000.0], Outcome.CUT, number=10, due_ms=1000.0)]
    made = result([replace(one, send_ns=one.due_ns + 5 * MS) for one in records])
    save(made, build(made), tmp_path)
    run = read_run(tmp_path)
    tree = write_vllm_bench(run.document, run.records, detailed=True)
    assert tree["completed"] == 10 and tree["failed"] == 1 and tree["num_prompts"] == 11
    assert tree["mean_ttft_ms"] == pytest.approx(95.0), "from the sending, as theirs"
    assert tree["median_itl_ms"] == tree["p99_itl_ms"] == pytest.approx(850.0) and tree["std_itl_ms"] == pytest.approx(
        0
    )
    assert tree["total_output_tokens"] == 20 and tree["total_input_tokens"] == 50
    assert tree["max_concurrent_requests"] >= 9 and tree["request_goodput"] is not None
    assert len(tree["ttfts"]) == len(tree["errors"]) == 11 and tree["errors"][10] == "cut: " and tree["itls"][10] == []
    (again,) = read_results(json.dumps(tree).encode(), "it")
    assert again.total.metrics["ttft_net"].completed_ms["p99"] == pytest.approx(95.0)
    assert again.total.outcomes == {"ok": 10, FAILED: 1}


def test_what_was_sent_to_warm_up_is_no_part_of_an_export(tmp_path: Path) -> None:
    def one(number: int, ttft_ms: float) -> Record:
        due_ms = 100.0 * number
        return record([due_ms + ttft_ms, due_ms + ttft_ms + 50], number=number, due_ms=due_ms)

    made = result([one(number, 5000.0 if number < 50 else 100.0) for number in range(100)])
    made = replace(made, spec=replace(made.spec, warmup_s=5.0))
    save(made, build(made), tmp_path)
    run = read_run(tmp_path)
    tree = write_vllm_bench(run.document, run.records, detailed=True)
    assert tree["completed"] == tree["num_prompts"] == len(tree["ttfts"]) == 50 and len(run.records) == 100
    assert tree["median_ttft_ms"] == tree["p99_ttft_ms"] == pytest.approx(100.0)
    assert tree["total_output_tokens"] == 100 and tree["total_input_tokens"] == 250
    assert tree["total_token_throughput"] == pytest.approx(350 / tree["duration"])
    assert tree["total_output_tokens"] / tree["duration"] == pytest.approx(tree["output_throughput"], rel=0.1)


def ours(*, closed: bool, concurrency: int | None) -> SavedRun:
    records = [record([100.0 * n + 100, 100.0 * n + 200], number=n, due_ms=100.0 * n) for n in range(4)]
    made = result(records)
    jobs = [replace(one, due_s=None if closed else one.due_s) for one in made.spec.jobs]
    made = replace(made, spec=replace(made.spec, jobs=jobs, limits=Limits(concurrency=concurrency)))
    return SavedRun(decode(json.dumps(as_json(build(made), made)).encode(), "it"), tuple(records))


@pytest.mark.parametrize(
    ("run", "rate"),
    [
        pytest.param(ours(closed=True, concurrency=2), "inf", id="as slots come free"),
        pytest.param(ours(closed=False, concurrency=None), "due", id="at a rate"),
        pytest.param(ours(closed=False, concurrency=2), "due", id="at a rate, with a limit"),
        pytest.param(SavedRun(golden("vllm_bench.json")[0]), 10.0, id="theirs, at a rate"),
        pytest.param(SavedRun(golden("vllm_bench_appended.json")[1]), "inf", id="theirs, in a closed loop"),
        pytest.param(SavedRun(golden("guidellm_benchmarks.json")[1]), "inf", id="streams"),
    ],
)
def test_an_export_tells_a_rate_from_a_closed_loop(run: SavedRun, rate: float | str | None) -> None:
    tree = write_vllm_bench(run.document, run.records)
    assert tree.get("request_rate") == (run.document.total.due_rps if rate == "due" else rate)


def test_what_is_not_known_is_left_out_of_an_export() -> None:
    _, second = golden("guidellm_benchmarks.json")
    tree = write_vllm_bench(second, ())
    assert "mean_ttft_ms" not in tree and "total_input_tokens" not in tree and "std_e2el_ms" not in tree
    assert tree["mean_e2el_ms"] == 2000 and tree["request_goodput"] is None and tree["max_concurrency"] == 8


def test_import_report_and_export_as_a_user_types_them(tmp_path: Path) -> None:
    def load(*arguments: str) -> Any:
        return CliRunner(env={"COLUMNS": "200"}).invoke(load_app, [*arguments])

    told = load("import", str(GOLDEN / "guidellm_benchmarks.json"), "--save-dir", str(tmp_path))
    assert told.exit_code == 0 and told.output.count("GuideLLM") == 2, told.output
    first, _ = sorted(tmp_path.glob("load-*.json"), key=lambda path: len(path.name))
    assert load("report", str(first)).exit_code == 0 and first.with_suffix(".html").exists()
    assert load("export", str(first), str(tmp_path / "out.json")).exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text())["p99_ttft_ms"] == 300
    refused = load("export", str(first), str(tmp_path / "out.json"), "--detailed")
    assert refused.exit_code == 2 and "has no records" in refused.output
    refused = load("import", str(tmp_path / "missing.json"))
    assert refused.exit_code == 2 and "cannot be read" in refused.output
    (tmp_path / "load-x.json").write_text('{"format": "ferry-load/1"}')
    refused = load("report", str(tmp_path / "load-x.json"))
    assert refused.exit_code == 2 and "no ferry-load/1 document" in refused.output
    assert load("report", str(tmp_path / "empty")).exit_code == 2
