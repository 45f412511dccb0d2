"""Tables in, tables out: what each column means, and what a row that cannot be predicted says."""

from __future__ import annotations

import pytest

from planner import PlannerError, read_devices
from planner.perf.calibration import Calibration
from planner.perf.estimate import WRITTEN, estimate, estimate_rows
from planner.perf.rows import question_of_row
from planner.perf.work import Layout

DEVICES = read_devices()
ROW = {
    "model": "meta-llama/Llama-3.1-70B", "gpu": "h200_sxm", "n_gpu": "4", "tp": "4", "pp": "1", "dp": "1", "ep": "1",
    "pd_split": "", "quant": "fp8", "engine": "vllm 0.19.0", "isl": "1000", "osl": "500", "load_kind": "concurrency",
    "load": "16",
}  # fmt: skip
NUMBERS = [name for name in WRITTEN if name not in ("rung", "error")]


def answers(*rows: dict[str, str]) -> list[dict[str, str]]:
    return estimate_rows(rows, calibration=Calibration(), devices=DEVICES)


def test_a_row_gives_what_the_same_estimate_gives() -> None:
    (found,) = answers(ROW)
    same = estimate(
        ROW["model"], "h200_sxm", tp=4, quant="fp8", isl=1000, osl=500, concurrency=16, calibration=Calibration()
    )
    assert float(found["ttft_p99_ms"]) == pytest.approx(same.ttft.p99_ms, rel=0.25)  # lengths: all alike, or drawn
    assert float(found["tpot_mean_ms"]) == pytest.approx(same.tpot.mean_ms, rel=1e-2)
    assert found["error"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"load_kind": "request_rate", "load": "0.5"},
        {"load_kind": "poisson_server", "load": "0.5"},
        {"load_kind": "static_batch", "load": "8"},
        {"load_kind": "offline_max", "load": "inf"},
        {"pd_split": "1P3D", "n_gpu": "16"},
        {"pd_split": "1P1D", "tp": "P4/D8", "dp": "P1/D1", "ep": "P0/D0"},
        {"dp": "2", "tp": "2"},
        {"quant": "bf16?", "tp": "8"},
        {"pp": "2"},
        {"quant": "", "tp": ""},
    ],
)
def test_every_kind_of_row_is_answered(change: dict[str, str]) -> None:
    (found,) = answers(ROW | change)
    assert found["error"] == ""
    assert all(float(found[name]) > 0 for name in NUMBERS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "no-such-model-9000"}, "model"),
        ({"gpu": "abacus"}, "system"),
        ({"quant": "int3"}, "quant"),
        ({"isl": ""}, "isl"),
        ({"osl": "-5"}, "osl"),
        ({"load": "many"}, "load"),
        ({"load": "nan"}, "load"),
        ({"load_kind": "storm"}, "load_kind"),
        ({"tp": "2.5"}, "tp"),
        ({"tp": "7"}, "tp"),
        ({"tp": "1", "quant": "bf16"}, "GiB"),
        ({"pd_split": "half"}, "pd_split"),
    ],
)
def test_a_row_that_cannot_be_says_why_and_stops_nobody(change: dict[str, str], named: str) -> None:
    bad, good = answers(ROW | change, ROW)
    assert named in bad["error"]
    assert all(bad[name] == "" for name in NUMBERS)
    assert good["error"] == ""


def test_missing_columns_count_as_empty() -> None:
    (found,) = answers({"model": "Llama-3.1-8B", "gpu": "h100"})
    assert "load_kind" in found["error"]


def test_data_parallel_attention_is_read_as_its_tables_write_it() -> None:
    """In InferenceMAX/X tables tp = dp = 4 and ep = 16 is four devices with attention on each."""
    question = question_of_row(ROW | {"tp": "4", "dp": "4", "ep": "16", "n_gpu": "16"}, DEVICES)
    assert question.layout == Layout(tp=1, dp=4, ep=4)


@pytest.mark.parametrize(
    "loads", [{}, {"concurrency": 4, "batch": 4}, {"concurrency": 0}, {"request_rate": float("nan")}]
)
def test_an_estimate_needs_one_load_above_zero(loads: dict[str, float]) -> None:
    with pytest.raises(PlannerError):
        estimate("Llama-3.1-8B", "h100", isl=100, osl=100, calibration=Calibration(), **loads)  # type: ignore[arg-type]


def test_more_than_can_be_served_is_said() -> None:
    (found,) = answers(ROW | {"load_kind": "request_rate", "load": "1000"})
    assert "overloaded" in found["error"]
    assert found["ttft_mean_ms"] == ""


def test_more_devices_than_a_layout_takes_are_replicas() -> None:
    """Four times the devices and clients: the same latencies and four times the tokens."""
    one, four = answers(ROW, ROW | {"n_gpu": "16", "load": "64"})
    assert four["tpot_mean_ms"] == one["tpot_mean_ms"]
    assert float(four["out_tok_s"]) == pytest.approx(4 * float(one["out_tok_s"]))


def test_a_table_without_tp_means_the_narrowest_layout_that_fits() -> None:
    small = question_of_row(ROW | {"model": "Llama-3.1-8B", "tp": "", "n_gpu": "8"}, DEVICES)
    large = question_of_row(ROW | {"quant": "bf16", "tp": "", "n_gpu": "8"}, DEVICES)
    assert (small.layout.tp, small.replicas) == (1, 8)
    assert (large.layout.tp, large.replicas) == (2, 4)


def test_an_engine_without_graphs_is_slower() -> None:
    old, new = answers(ROW | {"engine": "vLLM 2023 (Splitwise)"}, ROW)
    assert float(old["tpot_mean_ms"]) > 1.3 * float(new["tpot_mean_ms"])


def test_short_lines_and_slips_of_the_pen_are_no_traceback() -> None:
    none: dict[str, str] = dict.fromkeys(ROW)  # type: ignore[assignment]
    vast = [ROW | {column: "1e300"} for column in ("isl", "osl", "load", "tp", "dp", "n_gpu")]
    assert all(found["error"] for found in answers(none, {}, *vast))
