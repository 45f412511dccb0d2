"""`ferry plan estimate`: one estimate, and tables of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from planner import estimate
from planner.perf.estimate import WRITTEN
from tests.planner.command import ferry, plan, refused, tree_of

ONE = ("estimate", "--model", "Llama-3.1-70B", "--system", "h200_sxm", "--tp", "4", "--quant", "fp8")
HEADER = "model,gpu,n_gpu,tp,pp,dp,ep,pd_split,quant,engine,isl,osl,load_kind,load"
GOOD = "Llama-3.1-70B,h200_sxm,4,4,1,1,1,,fp8,vllm,1000,500,concurrency,16"


@pytest.mark.parametrize(
    ("flags", "load"),
    [
        (("--concurrency", "16"), {"concurrency": 16}),
        (("--request-rate", "1.5"), {"request_rate": 1.5}),
        (("--batch-size", "8"), {"batch": 8}),
    ],
)
def test_an_estimate_is_the_librarys(flags: tuple[str, ...], load: dict[str, float]) -> None:
    told = plan(*ONE, *flags, "--isl", "1000", "--osl", "500", "--json")
    assert told.exit_code == 0, told.output
    tree = tree_of(told)
    same = estimate("Llama-3.1-70B", "h200_sxm", tp=4, quant="fp8", isl=1000, osl=500, **load)
    assert tree["tpot"]["p99_ms"] == pytest.approx(same.tpot.p99_ms)
    assert tree["ttft"]["mean_ms"] == pytest.approx(same.ttft.mean_ms)
    assert tree["devices"] == 4 and tree["rung"] == same.rung and tree["servable"] is True


def test_people_see_percentiles_what_binds_and_how_sure_it_is() -> None:
    told = ferry("plan", *ONE, "--concurrency", "16")
    assert told.exit_code == 0, told.output
    for word in ("TTFT", "TPOT", "P99", "what binds", "how sure", "one decode step", "4 x NVIDIA H200"):
        assert word in told.stdout


def test_an_overload_is_exit_code_3_and_no_number_is_made_up() -> None:
    told = plan(*ONE, "--request-rate", "5000", "--json")
    assert told.exit_code == 3
    tree = tree_of(told)
    assert tree["ttft"]["mean_ms"] is None and tree["servable"] is False and "overloaded" in tree["limit"]
    assert "overloaded: at most" in plan(*ONE, "--request-rate", "5000").stdout


def test_a_table_gets_its_columns_appended_and_reasons_for_what_cannot_be(tmp_path: Path) -> None:
    bad = GOOD.replace("Llama-3.1-70B", "no-such-model-9000")
    rows, out = tmp_path / "in.csv", tmp_path / "out.csv"
    rows.write_text("\n".join([HEADER, GOOD, bad, ""]))
    told = plan("estimate", "--rows", str(rows), "--out", str(out))
    assert told.exit_code == 0 and "1 of 2 rows estimated" in told.stderr
    with out.open(newline="") as file:
        table = csv.DictReader(file)
        first, second = table
        assert table.fieldnames == [*HEADER.split(","), *WRITTEN]
    assert first["model"] == "Llama-3.1-70B" and float(first["tpot_p99_ms"]) > 0 and first["error"] == ""
    assert second["tpot_mean_ms"] == "" and "no-such-model-9000" in second["error"]


def test_a_table_without_a_file_to_write_goes_to_stdout_as_csv_or_json(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text(f"{HEADER}\n{GOOD}\n")
    (as_csv,) = csv.DictReader(plan("estimate", "--rows", str(rows)).stdout.splitlines())
    (as_json,) = tree_of(plan("estimate", "--rows", str(rows), "--json"))
    assert as_csv == as_json and float(as_csv["out_tok_s"]) > 0
    assert plan("estimate", "--rows", str(rows), "-o", str(tmp_path / "out.json")).exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == [as_json]


def test_what_was_measured_stays_beside_what_is_predicted(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text(f"{HEADER},tpot_mean_ms\n{GOOD},12.34\n")
    (row,) = csv.DictReader(plan("estimate", "--rows", str(rows)).stdout.splitlines())
    assert row["measured_tpot_mean_ms"] == "12.34" and row["tpot_mean_ms"] != "12.34"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*ONE,), ("exactly one load is needed", "concurrency")),
        ((*ONE, "--batch", "4", "--request-rate", "1"), ("batch", "exactly one load")),
        ((*ONE, "--request-rate", "-1"), ("request_rate is -1.0", "above zero")),
        ((*ONE, "--concurrency", "nan"), ("concurrency is nan", "above zero")),
        (("estimate", "--system", "l4", "--batch", "1"), ("--model is missing",)),
        (("estimate", "--model", "Llama-3.1-8B", "--batch", "1"), ("--system is missing",)),
        (("estimate", "--model", "Llama-3.1-70B", "--system", "l4", "--batch", "1"), ("tp is 1", "GiB", "raise tp")),
        (
            ("estimate", "--model", "Qwen3-8B", "--system", "ascend_910b3", "--quant", "fp8", "--batch", "1"),
            ("no fp8 unit",),
        ),
        ((*ONE, "--batch", "1", "--calibration", "none.yaml"), ("none.yaml", "cannot be read")),
        (("estimate", "--rows", "none.csv"), ("none.csv", "cannot be read")),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(plan(*arguments), *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "header"),
        (b"a,a\n1,2\n", "header"),
        (b"model,gpu\nx,y,z\n", "row 2"),
        (b"\xff\xfe", "cannot be read as CSV"),
    ],
)
def test_an_odd_table_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    refused(plan("estimate", "--rows", str(tmp_path / "in.csv")), "in.csv", word)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text(f"{HEADER}\n{GOOD}\n")
    refused(plan("estimate", "--rows", str(rows), "-o", str(tmp_path / "none" / "out.csv")), "cannot be written")
