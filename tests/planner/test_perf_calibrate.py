"""Calibration finds what was hidden in synthetic measurements, and stays put where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from planner import PlannerError, read_devices
from planner.perf.calibrate import Points, fit_base, fit_deployments, fit_devices
from planner.perf.calibration import Calibration
from planner.perf.coefficients import beliefs
from planner.perf.prepared import Prepared, prepare
from planner.perf.rows import question_of_row
from planner.perf.sanity import demanded_share
from planner.perf.shipped import calibration_document, read_calibration, shipped_calibration

DEVICES = read_devices()


def questions(model: str = "Qwen3-32B", gpu: str = "h100_sxm") -> Prepared:
    rows = [
        {
            "model": model, "gpu": gpu, "tp": tp, "quant": "bf16", "engine": "vllm", "load_kind": "concurrency",
            "isl": isl, "osl": "500", "load": load,
        }
        for tp in ("2", "8")
        for isl in ("300", "3000")
        for load in ("2", "16", "96")
    ]  # fmt: skip
    return prepare([question_of_row(row, DEVICES) for row in rows])


def measured(truth: Calibration, prepared: Prepared) -> Points:
    served = prepared.served(truth.coefficients(prepared.questions))
    return Points(prepared, served.ttft_s, served.tpot_s)


def worst_tpot(calibration: Calibration, points: Points) -> float:
    served = points.prepared.served(calibration.coefficients(points.prepared.questions))
    return float(np.max(np.abs(served.tpot_s / points.tpot_s - 1)))


def test_six_points_correct_a_slower_deployment() -> None:
    prepared = questions()
    key = "Qwen3-32B|h100_sxm|bfloat16|vllm"
    slower = Calibration(deployments={key: {"decode": 0.3, "prefill": 0.4}})
    points = measured(slower, prepared)
    assert worst_tpot(Calibration(), points) > 0.25
    found = fit_deployments(points.take(np.array([0, 2, 5, 7, 9, 11])), Calibration())
    assert worst_tpot(found, points) < 0.1
    assert found.rung(prepared.questions[0]) == "measured here"


def test_a_device_correction_helps_another_model_on_it_and_no_other_device() -> None:
    slower = Calibration(devices={"h100_sxm": {"decode": 0.2}})
    found = fit_devices(measured(slower, questions()), Calibration())
    other = measured(slower, questions("Llama-3.1-70B"))
    assert worst_tpot(found, other) < 0.7 * worst_tpot(Calibration(), other)
    elsewhere = questions("Llama-3.1-70B", "h200_sxm")
    assert worst_tpot(found, measured(Calibration(), elsewhere)) == 0


def test_the_base_moves_towards_the_points() -> None:
    truth = Calibration(base={**beliefs(), "layer_s": 45e-6})
    points = measured(truth, questions())
    found = fit_base(points, Calibration())
    assert worst_tpot(found, points) < 0.5 * worst_tpot(Calibration(), points)
    assert found.base["layer_s"] > beliefs()["layer_s"]


def test_one_wild_point_does_not_take_the_rest_along() -> None:
    points = measured(Calibration(), questions())
    points.tpot_s[3] *= 20
    found = fit_deployments(points, Calibration())
    good = np.delete(np.arange(len(points.tpot_s)), 3)
    assert worst_tpot(found, points.take(good)) < 0.15


def test_points_that_a_data_sheet_forbids_are_seen() -> None:
    points = measured(Calibration(), questions())
    assert np.all(demanded_share(points) < 1)
    impossible = Points(points.prepared, points.ttft_s / 50, points.tpot_s / 10)
    assert np.any(demanded_share(impossible) > 1)


def test_calibrations_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    written = fit_deployments(measured(Calibration(), questions()), Calibration())
    path.write_text(yaml.safe_dump(calibration_document(written)), encoding="utf-8")
    read = read_calibration(path)
    assert read.deployments == written.deployments
    assert read.base == pytest.approx(written.base, rel=1e-3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["base"].pop("memory"),
        lambda document: document["base"].update(memory="fast"),
        lambda document: document["base"].update(memory=float("nan")),
        lambda document: document["base"].update(memory=-1),
        lambda document: document["devices"].update(h100_sxm={"colour": 1.0}),
        lambda document: document.update(devices=[1]),
    ],
)
def test_an_odd_calibration_file_is_refused(tmp_path: Path, spoil: object) -> None:
    document = calibration_document(Calibration())
    spoil(document)  # type: ignore[operator]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(PlannerError):
        read_calibration(path)


def test_the_shipped_coefficients_are_physical() -> None:
    base = shipped_calibration().base
    assert 0.5 < base["memory"] < 1.3
    assert 0.5 < base["products"] < 1.3
    assert 0 < base["link"] <= 1
    assert all(1e-7 < value < 0.2 for name, value in base.items() if name.endswith("_s"))
