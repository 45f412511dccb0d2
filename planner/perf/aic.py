"""AIConfigurator's tables as points to calibrate on, for a deployment that nobody has measured here.

An optional source: `pip install 'ferry-serve[aic]'`. Its tables hold measured operators, and artefacts too: modes that
were interpolated from elsewhere, steps that get shorter as batches grow. What the roofline of the data sheet calls
impossible is left out, and told. On published measurements its own error is above ours, so an estimate that rests on it
has an error bar as wide as that comparison found (tests/bench/plan_accuracy_aic.py).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from planner.perf.calibrate import Points, fit_deployments
from planner.perf.calibration import Calibration
from planner.perf.estimate import estimates
from planner.perf.prepared import prepare
from planner.perf.question import Question
from planner.types import PlannerError

API = "aiconfigurator.cli.api"
BATCHES = (1, 4, 16, 64, 128, 256)
# So far beyond what the data sheet's roofline says, either way, a table is wrong and not the device special.
BELIEVED_FACTOR = 3.0
# A step may not get shorter by more than this as its batch grows.
MAY_FALL = 0.05

# The names under which it bundles these models.
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
        "Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
        "Qwen3-32B": "Qwen/Qwen3-32B",
        "MiniMax-M2": "MiniMaxAI/MiniMax-M2.5",
        "Kimi-K2.5": "moonshotai/Kimi-K2.5",
    }
)
NVFP4_NAMES: Mapping[str, str] = MappingProxyType(
    {"MiniMax-M2": "nvidia/MiniMax-M2.5-NVFP4", "Kimi-K2.5": "nvidia/Kimi-K2.5-NVFP4"}
)
GEMM_MODES: Mapping[str, str] = MappingProxyType(
    {"bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4": "int4_wo"}
)

Answer = Callable[[dict[str, object]], tuple[float, float]]
"""Arguments of `cli_estimate` -> (TTFT, TPOT) in ms. Whatever it raises is its refusal."""


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """What the tables gave: the calibration, how many points it rests on, and what was left out and why."""

    calibration: Calibration
    points: int
    left_out: tuple[str, ...]


def installed_answer() -> Answer:
    """AIConfigurator in this process. Raises PlannerError where it is not installed."""
    try:
        api: Any = importlib.import_module(API)
    except ImportError as error:
        remedy = "pip install 'ferry-serve[aic]', or leave --source out"
        raise PlannerError("settings", "--source", "aic", f"AIConfigurator is missing ({error})", remedy) from error

    def answer(arguments: dict[str, object]) -> tuple[float, float]:
        quiet = io.StringIO()  # it prints as it goes
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            found = api.cli_estimate(**arguments)
        return float(found.ttft), float(found.tpot)

    return answer


def borrowed(question: Question, answer: Answer, start: Calibration) -> Borrowed:
    """`start`, with this deployment corrected by what AIConfigurator says of it at several batches.

    Raises PlannerError where nothing is left.
    """
    asked_for = [replace(question, kind="concurrency", load=float(batch * question.replicas)) for batch in BATCHES]
    told: list[tuple[Question, float, float]] = []
    left_out: list[str] = []
    for one in asked_for:
        try:
            ttft_ms, tpot_ms = answer(arguments_of(one))
        except Exception as error:  # any kind: each is its refusal of this point
            left_out.append(f"batch {one.load:g}: it refuses, {type(error).__name__}: {error}"[:200])
            continue
        told.append((one, ttft_ms / 1e3, tpot_ms / 1e3))
    kept = _believable(told, left_out)
    if not kept:
        problem = f"no point of its tables is left: {'; '.join(left_out)}"
        remedy = "leave --source out, or measure with `ferry profile`"
        raise PlannerError("settings", "--source", "aic", problem, remedy)
    points = Points(
        prepare([one for one, _, _ in kept]),
        np.array([ttft_s for _, ttft_s, _ in kept]),
        np.array([tpot_s for _, _, tpot_s in kept]),
    )
    after = fit_deployments(points, start)
    key = points.keys[0]
    return Borrowed(
        calibration=replace(after, borrowed=after.borrowed | {key}), points=len(kept), left_out=tuple(left_out)
    )


def _believable(
    told: Sequence[tuple[Question, float, float]], left_out: list[str]
) -> list[tuple[Question, float, float]]:
    """Without artefacts; those go to `left_out` in words."""
    if not told:
        return []
    sheet = estimates(prepare([question for question, _, _ in told]), Calibration())
    kept: list[tuple[Question, float, float]] = []
    longest_s = 0.0
    for (question, ttft_s, tpot_s), known in zip(told, sheet, strict=True):
        ratio = tpot_s / (known.tpot.mean_ms / 1e3) if tpot_s > 0 else 0.0
        if not 1 / BELIEVED_FACTOR <= ratio <= BELIEVED_FACTOR:
            left_out.append(f"batch {question.load:g}: TPOT {ratio:.2f} times the roofline's")
        elif tpot_s < longest_s * (1 - MAY_FALL):
            left_out.append(f"batch {question.load:g}: a shorter step than a smaller batch")
        else:
            kept.append((question, ttft_s, tpot_s))
            longest_s = max(longest_s, tpot_s)
    return kept


def arguments_of(question: Question) -> dict[str, object]:
    """The arguments of AIConfigurator's `cli_estimate` for a question; layouts in its terms."""
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
