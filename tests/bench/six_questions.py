"""The six questions that were put to AIConfigurator 0.12, answered by `ferry plan`, side by side.

    python tests/bench/six_questions.py

What AIConfigurator said was recorded in 2026-11 on two cores (`aiconfigurator cli default | recommend | estimate`,
backend vllm, its own defaults). It answers with means, so the promises here are of means too.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from planner import Answer, estimate, plan_for
from planner.plan import Plan
from planner.questions import question_file, question_of
from planner.report.answers import infeasible_lines, pools_text, tightest

Flags = dict[str, object]


@dataclass(frozen=True)
class Question:
    what: str
    asked: Flags
    aic: str


QUESTIONS = (
    Question(
        "Qwen3-32B-FP8, 32 x H200, 4000 + 500 tokens, TTFT 1000, TPOT 25: the most they bear",
        {"model": "Qwen3-32B-FP8", "system": ["h200_sxm"], "total_gpus": 32, "isl": 4000, "osl": 500, "ttft_ms": 1000,
         "tpot_ms": 25},
        "6 prefill + 18 decode x TP1 (24 of 32 GPUs), 272.5 tok/s/GPU, TTFT 509, TPOT 24.7; 9.4 s",
    ),
    Question(
        "Qwen3-32B-FP8, H200, 50 requests/s, 2000 + 300 tokens, TTFT 1000, TPOT 30: the fewest GPUs",
        {"model": "Qwen3-32B-FP8", "system": ["h200_sxm"], "request_rate": 50.0, "isl": 2000, "osl": 300,
         "ttft_ms": 1000, "tpot_ms": 30},
        "28 GPUs: 28 x TP1, 545.9 tok/s/GPU, TTFT 279, TPOT 28.4; 58.8 s",
    ),
    Question(
        "Llama-3.1-70B, 8 x H100, 2048 + 256 tokens, TTFT 1000, TPOT 40: the most they bear",
        {"model": "Llama-3.1-70B", "system": ["h100_sxm"], "total_gpus": 8, "isl": 2048, "osl": 256, "ttft_ms": 1000,
         "tpot_ms": 40, "quant": ["none"], "kv_cache_dtype": ["auto"]},
        "2 x TP4, 248.0 tok/s/GPU, TTFT 342, TPOT 39.0; 43.5 s",
    ),
    Question(
        "DeepSeek-V3, 16 x H200, 4096 + 512 tokens, TTFT 3000, TPOT 50: the most they bear",
        {"model": "DeepSeek-V3", "system": ["h200_sxm"], "total_gpus": 16, "isl": 4096, "osl": 512, "ttft_ms": 3000,
         "tpot_ms": 50},
        "1 prefill (DP8) + 1 decode (TP2 DP4), 221.4 tok/s/GPU, TTFT 1873, TPOT 44.1; 152 s",
    ),
    Question(
        "Qwen3-8B, 4 x L4, 1000 + 200 tokens, TTFT 2000, TPOT 100: the most they bear",
        {"model": "Qwen3-8B", "system": ["l4"], "total_gpus": 4, "isl": 1000, "osl": 200, "ttft_ms": 2000,
         "tpot_ms": 100},
        "no answer: no table for L4; 13.9 s",
    ),
)  # fmt: skip
POINT = "Qwen3-32B-FP8 on one H200, 2000 + 300 tokens, a batch of 16: what it does"
POINT_AIC = "TTFT 279, TPOT 28.4, 545.9 tok/s; 17.5 s"


def main() -> int:
    print("| question | AIConfigurator 0.12 | ferry plan |\n|---|---|---|")
    for question in QUESTIONS:
        print(f"| {question.what} | {question.aic} | {_answer(question.asked)} |", flush=True)
    start_s = time.perf_counter()
    point = estimate("Qwen3-32B-FP8", "h200_sxm", isl=2000, osl=300, concurrency=16)
    took_s = time.perf_counter() - start_s
    ours = f"TTFT {point.ttft.mean_ms:.0f} (P99 {point.ttft.p99_ms:.0f}), TPOT {point.tpot.mean_ms:.1f}"
    ours += (
        f" (P99 {point.tpot.p99_ms:.1f}), {point.out_tok_s:.1f} tok/s, TPOT ± {point.sigma.tpot:.0%}; {took_s:.2f} s"
    )
    print(f"| {POINT} | {POINT_AIC} | {ours} |")
    return 0


def _answer(asked: Flags) -> str:
    start_s = time.perf_counter()
    question = question_of(question_file(asked | {"statistic": "mean"}, file="settings"), Path())
    answer = plan_for(question)
    took_s = time.perf_counter() - start_s
    if not isinstance(answer, Answer):
        return f"{next(iter(infeasible_lines(answer, explain=False)))}; {took_s:.1f} s"
    return f"{_told(answer.fewest_gpus.plan)}; {took_s:.1f} s"


def _told(plan: Plan) -> str:
    seen, traffic = tightest(plan), plan.traffic
    tok_s = traffic.rate_rps * traffic.osl.mean / plan.devices
    tpot = f"{seen.tpot_ms.p50:.1f} / {seen.tpot_ms.p99:.1f}" if seen.tpot_ms else "none"
    return (
        f"{pools_text(plan)} ({plan.devices:g} GPUs), {traffic.rate_rps:.3g} requests/s, {tok_s:.1f} tok/s/GPU, "
        f"TTFT P50/P99 {seen.ttft_ms.p50:.0f} / {seen.ttft_ms.p99:.0f}, TPOT {tpot}, "
        f"{plan.cost.expected_usd_per_hour:.2f} USD/h, P(SLO met) {plan.prediction.probability:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
