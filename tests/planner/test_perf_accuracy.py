"""A floor under the accuracy on published measurements, so that it cannot silently fall. Needs FERRY_DATA.

The whole tables, held out by model and by device, are printed by tests/bench/plan_accuracy.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from planner.perf.calibration import Calibration
from planner.perf.shipped import shipped_calibration

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from parts.plan_data import FILE, Measured, is_vllm, measured, read_rows

from tests.research_data import data_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vllm_rows() -> Measured:
    return measured([row for row in read_rows(data_file(FILE).parent) if is_vllm(row)])[0]


def medians(data: Measured, calibration: Calibration) -> tuple[float, float]:
    tpot, ttft = data.errors(calibration)
    return float(np.nanmedian(np.abs(tpot))), float(np.nanmedian(np.abs(ttft)))


def test_no_row_loses_its_prediction(vllm_rows: Measured) -> None:
    assert len(vllm_rows.rows) >= 289


def test_uncalibrated(vllm_rows: Measured) -> None:
    tpot, ttft = medians(vllm_rows, Calibration())
    assert tpot < 0.12
    assert ttft < 0.25


def test_shipped(vllm_rows: Measured) -> None:
    tpot, ttft = medians(vllm_rows, shipped_calibration())
    assert tpot < 0.09
    assert ttft < 0.20
