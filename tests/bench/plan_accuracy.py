"""How wrong the performance model is on published measurements that it was not fitted on.

    FERRY_DATA=folder python tests/bench/plan_accuracy.py [--write]

FERRY_DATA holds published_perf.csv. `--write` fits all points and writes the coefficients that ship with the planner.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import yaml
from parts.plan_data import (
    FILE,
    Measured,
    Row,
    after_six,
    closed_loop,
    fitted,
    fitted_deployments,
    held_out,
    is_vllm,
    measured,
    model_of,
    read_rows,
    slice_of,
)

from planner.perf.calibration import Calibration
from planner.perf.estimate import estimate_rows
from planner.perf.rows import engine_family
from planner.perf.shipped import SHIPPED, calibration_document

AIMS = {"uncalibrated": (12, 30), "model held out": (10, 25), "device held out": (10, 25), "six points": (8, 18)}
HEADER = """\
# What the performance model learnt from published measurements; written by tests/bench/plan_accuracy.py --write.
# Fitted {date} on {count} closed-loop rows of AIConfigurator 0.12's silicon sample (Apache-2.0; InferenceMAX/X and
# NVIDIA runs, 2026-03/04), which are:
{slices}# Units: *_s in seconds, others factors on planner/perf/chip.py. Corrections: natural log of a factor on time.
# Sigmas: relative, one sigma, from the medians that the same script prints for held-out rows (median / 0.6745).
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="fit all points and write the shipped coefficients")
    options = parser.parse_args(arguments)
    folder = Path(os.environ.get("FERRY_DATA", "../shared/data"))
    if not (folder / FILE).is_file():
        print(f"no {FILE} in {folder}: set FERRY_DATA", file=sys.stderr)
        return 2
    rows = read_rows(folder)
    data, refused = measured([row for row in rows if is_vllm(row)])
    print(f"{len(data.rows)} closed-loop vLLM rows, {len(data.possible().rows)} of them within its operators' reach;")
    print(f"{len(refused)} refused: " + "; ".join(sorted(set(refused))))
    results = {"uncalibrated": data.errors(Calibration())}
    tpot, ttft, without_model = held_out(data, model_of)
    results["model held out"] = tpot, ttft
    results["device held out"] = held_out(data, lambda row: row["gpu"])[:2]
    results["six points"] = after_six(data, without_model)
    for title, by in (("model", model_of), ("device", lambda row: row["gpu"]), ("slice", slice_of)):
        _table(f"by {title}", data, by, results)
    calibration = fitted(data)
    _others(rows, calibration)
    _throughput(rows, calibration)
    _percentiles(rows, calibration)
    if options.write:
        _write(data, calibration, results)
    return 0


def _table(
    title: str, data: Measured, by: Callable[[Row], str], results: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    print(f"\nMedian absolute error, TPOT / TTFT in %, {title}")
    print(f"{'':48}{'n':>5}" + "".join(f"{name:>18}" for name in results))
    names = sorted({by(row) for row in data.rows})
    for name in [*names, ""]:
        index = data.where(lambda row, name=name: not name or by(row) == name)
        cells = "".join(f"{_median(t[index]):>10.1f} /{_median(f[index]):>6.1f}" for t, f in results.values())
        print(f"{name or 'all':48}{len(index):>5}{cells}")
    print(f"{'aim':53}" + "".join(f"{AIMS[name][0]:>10.1f} /{AIMS[name][1]:>6.1f}" for name in results))


def _others(rows: list[Row], calibration: Calibration) -> None:
    """Engines that nothing was fitted on."""
    data, refused = measured([row for row in rows if closed_loop(row) and not is_vllm(row)])
    print(f"\nOther engines, by vLLM's coefficients ({len(refused)} rows refused): TPOT / TTFT in %")
    tpot, ttft = data.errors(calibration)
    for name in sorted({f"{engine_family(row['engine'])} | {slice_of(row)}" for row in data.rows}):
        index = data.where(lambda row, name=name: f"{engine_family(row['engine'])} | {slice_of(row)}" == name)
        print(f"{name:48}{len(index):>5}{_median(tpot[index]):>10.1f} /{_median(ttft[index]):>6.1f}")


def _throughput(rows: list[Row], calibration: Calibration) -> None:
    """Loads without latencies, never fitted on: static batches and greatest throughputs."""
    checked = [row for row in rows if row["load_kind"] in ("static_batch", "offline_batch", "offline_max")]
    answers = estimate_rows(checked, calibration=calibration)
    print("\nNever fitted: error of throughput, of prompt time, of token time in % (median; bias of the first)")
    for name in sorted({f"{row['load_kind']} | {slice_of(row)}" for row in checked}):
        errors: dict[str, list[float]] = {"out_tok_s": [], "ttft_mean_ms": [], "tpot_mean_ms": []}
        for row, answer in zip(checked, answers, strict=True):
            for column, found in errors.items():
                told = row[column] or row[column.replace("mean", "p50")]
                if f"{row['load_kind']} | {slice_of(row)}" == name and told and answer[column]:
                    found.append(float(answer[column]) / float(told) - 1)
        cells = "".join(f"{_median(np.array(found)):>10.1f}" for found in errors.values())
        bias = 100 * np.median(errors["out_tok_s"]) if errors["out_tok_s"] else float("nan")
        print(f"{name:64}{len(errors['out_tok_s']) or len(errors['tpot_mean_ms']):>5}{cells}{bias:>10.1f}")


def _percentiles(rows: list[Row], calibration: Calibration) -> None:
    """Open-loop rows, never fitted on: predicted against measured tails."""
    sources = ("MLPerf", "LLMServingSim", "BLIS")
    checked = [row for row in rows if row["load_kind"].startswith("poisson") and row["source"].startswith(sources)]
    print("\nOpen loop, never fitted (predicted / measured): TTFT P50, P99; TPOT P50, P99; ms")
    for row, answer in zip(checked, estimate_rows(checked, calibration=calibration), strict=True):
        names = ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")
        said = answer["error"] or ", ".join(f"{float(answer[n]):.0f} / {row[n] or '-'}" for n in names)
        print(f"{model_of(row):28} {row['gpu'][:28]:28} {row['load']:>7}  {said}")


def _write(data: Measured, calibration: Calibration, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    document = calibration_document(fitted_deployments(data, calibration))
    rungs = {
        "measured here": "six points",
        "other models on this device": "model held out",
        "other devices": "device held out",
        "data sheet only": "uncalibrated",
    }
    document["sigmas"] = {
        rung: {"tpot": _sigma(results[name][0]), "ttft": _sigma(results[name][1])} for rung, name in rungs.items()
    }
    used = data.possible()
    slices = "".join(f"#   {name}\n" for name in sorted({slice_of(row) for row in used.rows}))
    header = HEADER.format(date=date.today(), count=len(used.rows), slices=slices)
    SHIPPED.write_text(header + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    print(f"\nwrote {SHIPPED.name}")


def _median(errors: np.ndarray) -> float:
    known = np.abs(errors[np.isfinite(errors)])
    return float(100 * np.median(known)) if known.size else float("nan")


def _sigma(errors: np.ndarray) -> float:
    return round(_median(errors) / 100 / 0.6745, 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
