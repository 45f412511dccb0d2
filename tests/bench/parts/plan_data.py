"""Published measurements as points for the performance model, and how they are held out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np

from planner import PlannerError, read_devices
from planner.perf.calibrate import Points, fit_base, fit_deployments, fit_devices
from planner.perf.calibration import Calibration
from planner.perf.prepared import Index, prepare
from planner.perf.rows import engine_family, question_of_row
from planner.perf.sanity import demanded_share

FILE = "published_perf.csv"
# Fitted on these alone; MLPerf and BLIS are kept for checks of percentiles.
FITTED_SOURCE = "AIC silicon_sample"
SIX = 6
BELIEVABLE = 0.9

Row = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """Rows that could be asked, with their points, in one order."""

    rows: list[Row]
    points: Points

    def where(self, wanted: Callable[[Row], bool]) -> Index:
        return np.array([index for index, row in enumerate(self.rows) if wanted(row)], np.intp)

    def take(self, index: Index) -> Measured:
        return Measured([self.rows[i] for i in index], self.points.take(index))

    def possible(self) -> Measured:
        """Without points that ask more than the device's operators ever reached."""
        return self.take(np.flatnonzero(demanded_share(self.points) <= 1))

    def errors(self, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
        """Relative errors of TPOT and TTFT, NaN where not measured."""
        served = self.points.prepared.served(calibration.coefficients(self.points.prepared.questions))
        return served.tpot_s / self.points.tpot_s - 1, served.ttft_s / self.points.ttft_s - 1


def read_rows(folder: Path) -> list[Row]:
    with (folder / FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measured(rows: Sequence[Row]) -> tuple[Measured, list[str]]:
    """The points of `rows`, and the reasons why some could not be asked."""
    devices = read_devices()
    good, questions, refused = [], [], []
    for row in rows:
        try:
            question = question_of_row(row, devices)
            prepare([question])
        except PlannerError as error:
            refused.append(f"{row['model']} on {row['gpu']}: {error}")
            continue
        good.append(row)
        questions.append(question)
    ttft_s, tpot_s = (np.array([_seconds(row[name]) for row in good]) for name in ("ttft_mean_ms", "tpot_mean_ms"))
    return Measured(good, Points(prepare(questions), ttft_s, tpot_s)), refused


def closed_loop(row: Row) -> bool:
    return row["load_kind"] == "concurrency" and row["source"].startswith(FITTED_SOURCE)


def is_vllm(row: Row) -> bool:
    return closed_loop(row) and engine_family(row["engine"]) == "vllm"


def model_of(row: Row) -> str:
    """The model whatever its format: an FP8 copy of a model is the same model when models are held out."""
    return row["model"].rsplit("/", 1)[-1].removesuffix("-FP8").removesuffix("-Instruct")


def slice_of(row: Row) -> str:
    return f"{model_of(row)} | {row['gpu']} | {row['quant']}"


def fitted(data: Measured) -> Calibration:
    """Base coefficients and device corrections from all of `data` that is possible."""
    points = data.possible().points
    return fit_devices(points, fit_base(points, Calibration()))


def fitted_deployments(data: Measured, calibration: Calibration) -> Calibration:
    """Corrections of slices of at least twice six rows that are believable as a whole."""
    believed = {name for name in map(slice_of, data.rows) if _believable(data, name)}
    return fit_deployments(data.take(data.where(lambda row: slice_of(row) in believed)).points, calibration)


def _believable(data: Measured, name: str) -> bool:
    part = data.take(data.where(lambda row: slice_of(row) == name))
    return len(part.rows) >= 2 * SIX and len(part.possible().rows) >= BELIEVABLE * len(part.rows)


def held_out(data: Measured, key: Callable[[Row], str]) -> tuple[np.ndarray, np.ndarray, dict[str, Calibration]]:
    """Errors of each row by a calibration that never saw its `key`, and those calibrations."""
    tpot, ttft = np.full(len(data.rows), nan), np.full(len(data.rows), nan)
    calibrations = {}
    for name in sorted({key(row) for row in data.rows}):
        out = data.where(lambda row, name=name: key(row) == name)
        rest = data.where(lambda row, name=name: key(row) != name)
        calibrations[name] = fitted(data.take(rest))
        tpot[out], ttft[out] = data.take(out).errors(calibrations[name])
    return tpot, ttft, calibrations


def after_six(data: Measured, without_model: dict[str, Calibration]) -> tuple[np.ndarray, np.ndarray]:
    """Errors of each row after six points of its slice corrected a calibration that never saw its model.

    The six are NaN, and so are slices with fewer than twice as many rows.
    """
    tpot, ttft = np.full(len(data.rows), nan), np.full(len(data.rows), nan)
    for name in sorted({slice_of(row) for row in data.rows}):
        index = data.where(lambda row, name=name: slice_of(row) == name)
        if len(index) < 2 * SIX:
            continue
        part = data.take(index)
        six = well_spread(part, SIX)
        calibration = fit_deployments(part.points.take(six), without_model[model_of(part.rows[0])])
        rest = np.setdiff1d(np.arange(len(index)), six)
        tpot[index[rest]], ttft[index[rest]] = part.take(rest).errors(calibration)
    return tpot, ttft


def well_spread(data: Measured, count: int) -> Index:
    """`count` points far from each other in batch, context, prompt share and width; what a profile would measure."""
    load, work = data.points.prepared.load, data.points.prepared.work
    axes = np.log(np.stack([load.concurrency, load.isl, load.osl, work.tp * work.dp], axis=1))
    axes = axes / np.maximum(1e-9, axes.std(axis=0))
    chosen = [int(np.argmin(np.abs(axes - axes.mean(axis=0)).sum(axis=1)))]
    while len(chosen) < min(count, len(axes)):
        distance = np.min([np.abs(axes - axes[c]).sum(axis=1) for c in chosen], axis=0)
        chosen.append(int(np.argmax(distance)))
    return np.array(sorted(chosen), np.intp)


def _seconds(milliseconds: str) -> float:
    return float(milliseconds) / 1e3 if milliseconds and float(milliseconds) > 0 else nan
