"""Ferry's performance model and AIConfigurator on the same published rows, those that both can predict.

    FERRY_DATA=folder python tests/bench/plan_accuracy_aic.py --python venv/bin/python [--rows 60]

`--python` is an interpreter of an environment of its own: `pip install aiconfigurator==0.12.0` (x86-64, 850 MB; not
one of Ferry's dependencies). Without it the script says so and ends. Both get the lengths that were drawn, the format
of the weights and the layout; AIConfigurator its own default version of vLLM's tables, and a batch per attention rank.
Ferry's answers come from calibrations that never saw the row's model. AIConfigurator takes about a second for each row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from parts.plan_data import FILE, Measured, held_out, is_vllm, measured, model_of, read_rows, slice_of

from planner.perf.calibration import Calibration
from planner.perf.question import Question

WORKER = Path(__file__).parent / "parts" / "aic_worker.py"
# The names under which it bundles these models.
NAMES = {
    "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "Qwen3-32B": "Qwen/Qwen3-32B",
    "MiniMax-M2": "MiniMaxAI/MiniMax-M2.5",
    "Kimi-K2.5": "moonshotai/Kimi-K2.5",
}
NVFP4_NAMES = {"MiniMax-M2": "nvidia/MiniMax-M2.5-NVFP4", "Kimi-K2.5": "nvidia/Kimi-K2.5-NVFP4"}
GEMM_MODES = {"bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4": "int4_wo"}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=os.environ.get("AIC_PYTHON", ""), help="of AIConfigurator's environment")
    parser.add_argument("--rows", type=int, help="so many at most, evenly over the table")
    options = parser.parse_args(arguments)
    folder = Path(os.environ.get("FERRY_DATA", "../shared/data"))
    if not options.python:
        print("skipped: name the interpreter of an environment with aiconfigurator 0.12 (--python or AIC_PYTHON)")
        return 0
    if not (folder / FILE).is_file():
        print(f"no {FILE} in {folder}: set FERRY_DATA", file=sys.stderr)
        return 2
    data, _ = measured([row for row in read_rows(folder) if is_vllm(row) and not row["pd_split"]])
    ours = held_out(data, model_of)[:2]
    bare = data.errors(Calibration())
    chosen = np.arange(len(data.rows))
    if options.rows:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, options.rows).astype(int))
    answers = ask(options.python, [asked(data.points.prepared.questions[row]) for row in chosen])
    told = [row for row, answer in zip(chosen, answers, strict=True) if "error" not in answer]
    refusals = [answer["error"] for answer in answers if "error" in answer]
    theirs = errors_of(data, told, [answer for answer in answers if "error" not in answer])
    print(f"{len(told)} of {len(chosen)} rows predicted by both; AIConfigurator refused {len(refusals)}")
    for refusal in sorted(set(refusals))[:8]:
        print(f"  {refusals.count(refusal):>4} x {refusal}")
    show(data, np.array(told, np.intp), bare, ours, theirs)
    return 0


def asked(question: Question) -> dict[str, object]:
    """The arguments of AIConfigurator's cli_estimate for a question; layouts in its terms."""
    layout, name, stored = question.layout, question.shape.name, question.stored.name
    ranks = layout.tp * layout.dp
    experts = {"moe_ep_size": layout.ep, "moe_tp_size": ranks // layout.ep} if question.shape.experts else {}
    own = NVFP4_NAMES.get(name, "") if stored == "nvfp4" else ""
    # A checkpoint of the very format brings its own modes for each part.
    mode = GEMM_MODES.get(stored) if not own and stored != question.shape.quantisation.name else None
    return {
        "model_path": own or NAMES.get(name, name),
        "system_name": question.device.whole,
        "backend_name": "vllm",
        "isl": round(question.isl),
        "osl": round(question.osl),
        "batch_size": max(1, round(question.load / question.replicas / layout.dp)),
        "tp_size": layout.tp,
        "pp_size": layout.pp,
        "attention_dp_size": layout.dp,
        **experts,
        **({"gemm_quant_mode": mode} if mode else {}),
        **({"moe_quant_mode": mode} if mode and question.shape.experts else {}),
        **({"kvcache_quant_mode": "fp8"} if question.kv_dtype == "fp8" else {}),
    }


def ask(python: str, questions: list[dict[str, object]]) -> list[dict[str, object]]:
    """One answer per question, in order. Raises RuntimeError if the worker dies."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run([python, str(WORKER)], input=lines, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(answers) != len(questions):
        raise RuntimeError(f"{len(answers)} answers to {len(questions)} questions: {done.stderr[-500:]}")
    return answers


def errors_of(
    data: Measured, rows: Sequence[int], answers: Sequence[dict[str, object]]
) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors of AIConfigurator's TPOT and TTFT at `rows`."""
    index = np.array(rows, np.intp)
    tpot_s = np.array([answer["tpot_ms"] for answer in answers], float) / 1e3
    ttft_s = np.array([answer["ttft_ms"] for answer in answers], float) / 1e3
    return tpot_s / data.points.tpot_s[index] - 1, ttft_s / data.points.ttft_s[index] - 1


def show(
    data: Measured,
    told: np.ndarray,
    bare: tuple[np.ndarray, np.ndarray],
    ours: tuple[np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray],
) -> None:
    print("\nMedian absolute error, TPOT / TTFT in %")
    print(f"{'':40}{'n':>5}{'Ferry, data sheets':>22}{'Ferry, model held out':>24}{'AIConfigurator 0.12':>22}")
    names = [slice_of(data.rows[row]) for row in told]
    for name in [*sorted(set(names)), ""]:
        here = np.array([not name or own == name for own in names], bool)
        cells = [(bare, told[here]), (ours, told[here]), (theirs, np.flatnonzero(here))]
        shown = [f"{_median(pair[0][index]):.1f} / {_median(pair[1][index]):.1f}" for pair, index in cells]
        print(f"{name or 'all':40}{here.sum():>5}{shown[0]:>22}{shown[1]:>24}{shown[2]:>22}")


def _median(errors: np.ndarray) -> float:
    known = np.abs(errors[np.isfinite(errors)])
    return float(100 * np.median(known)) if known.size else float("nan")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
