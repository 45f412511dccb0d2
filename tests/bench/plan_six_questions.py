"""Six questions that AIConfigurator 0.12 was asked, its recorded answers, and what Ferry says of the same deployments.

    python tests/bench/plan_six_questions.py

The answers were recorded in 2026-11 on this project's machine: `aiconfigurator cli default|recommend|estimate
--backend vllm`, version 0.12 (Apache-2.0). It names one best deployment per question, with the mean TTFT and TPOT that
it expects, and tokens per second and GPU. Ferry estimates those very deployments at the load that AIConfigurator
states (batch per replica), with percentiles and an error bar; its P99 of TTFT counts the burst in which all clients of
a closed loop start. Nobody measured them: the table shows where the two agree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from planner import Estimate, PlannerError, estimate


@dataclass(frozen=True)
class Asked:
    """One mixed ("agg") deployment of AIConfigurator's answer; `batch` is its concurrency per replica."""

    question: str
    model: str
    system: str
    isl: int
    osl: int
    tp: int
    batch: int
    ttft_slo_ms: float
    tpot_slo_ms: float
    ttft_ms: float
    tpot_ms: float | None  # None: not recorded
    tok_s_gpu: float


# Of its two families of answers the mixed one, since its batch is recorded; question 4's mixed answer and question 6
# have no figures beyond what is printed below.
RECORDED = (
    Asked("1 Qwen3-32B-FP8, 32 x H200, 4000/500", "Qwen3-32B-FP8", "h200_sxm", 4000, 500, 2, 12,
          1000, 25, 315, None, 239.2),
    Asked("2 Qwen3-32B-FP8, H200, 50 requests/s", "Qwen3-32B-FP8", "h200_sxm", 2000, 300, 1, 16,
          1000, 30, 279, 28.4, 545.9),
    Asked("3 Llama-3.1-70B, 8 x H100, 2048/256", "Llama-3.1-70B", "h100_sxm", 2048, 256, 4, 40,
          1000, 40, 342, 39.0, 248.0),
    Asked("5 Qwen3-32B-FP8, H200, batch of 16", "Qwen3-32B-FP8", "h200_sxm", 2000, 300, 1, 16,
          1000, 30, 279.07, 28.375, 545.9),
)  # fmt: skip


def main() -> int:
    print("AIConfigurator's best mixed deployment, and Ferry's estimate of it")
    print(f"{'':38}{'layout':>9}{'TTFT ms':>10}{'Ferry mean / P99':>20}{'TPOT ms':>9}{'Ferry mean / P99':>20}"
          f"{'tok/s/GPU':>11}{'Ferry':>8}")  # fmt: skip
    for asked in RECORDED:
        _show(asked)
    print("\n4 DeepSeek-V3, 16 x H200, 4096/512, TTFT 3000, TPOT 50: AIConfigurator 1P(dp8) + 1D(tp2 dp4),")
    print("  221.4 tok/s/GPU, TTFT 1873, TPOT 44.1; mixed 172.3 tok/s/GPU (its batch is not recorded)")
    _four()
    print(
        "\n6 Qwen3-8B on L4, 1000/200, TTFT 2000, TPOT 100: AIConfigurator printed no configuration (l4 has no tables)"
    )
    _six()
    return 0


def _show(asked: Asked) -> None:
    told = estimate(asked.model, asked.system, isl=asked.isl, osl=asked.osl, concurrency=asked.batch, tp=asked.tp)
    tpot = "-" if asked.tpot_ms is None else f"{asked.tpot_ms:.1f}"
    print(
        f"{asked.question:38}{f'TP{asked.tp} x{asked.batch}':>9}{asked.ttft_ms:>10.0f}{_pair(told.ttft):>20}"
        f"{tpot:>9}{_pair(told.tpot):>20}{asked.tok_s_gpu:>11.1f}{told.out_tok_s / asked.tp:>8.1f}"
    )
    print(f"{'':38}{_verdict(told, asked.ttft_slo_ms, asked.tpot_slo_ms)}")


def _four() -> None:
    """The largest load of a mixed deployment that keeps both limits at P90."""
    _best("DeepSeek-V3", "h200_sxm", isl=4096, osl=512, ttft_ms=3000, tpot_ms=50, tp=8, dp=1, ep=8)


def _six() -> None:
    for quant in ("bf16", "fp8"):
        _best("Qwen3-8B", "l4", isl=1000, osl=200, ttft_ms=2000, tpot_ms=100, quant=quant)


def _best(  # what a table of this kind wants, by bisection over concurrency
    model: str, system: str, *, isl: int, osl: int, ttft_ms: float, tpot_ms: float, tp: int = 1, dp: int = 1,
    ep: int = 1, quant: str | None = None,
) -> None:  # fmt: skip
    low, high, best = 1, 1024, None
    while low <= high:
        middle = (low + high) // 2
        try:
            told = estimate(model, system, isl=isl, osl=osl, concurrency=middle, tp=tp, dp=dp, ep=ep, quant=quant)
        except PlannerError as error:
            print(f"  Ferry: {error}; {error.remedy}")
            return
        if told.ttft.p90_ms <= ttft_ms and told.tpot.p90_ms <= tpot_ms:
            best, low = (middle, told), middle + 1
        else:
            high = middle - 1
    layout = f"TP{tp}" + (f" EP{ep}" if ep > 1 else "") + (f" {quant}" if quant else "")
    if best is None:
        print(f"  Ferry: mixed, {layout}: no load keeps both limits")
        return
    load, told = best
    print(
        f"  Ferry: mixed, {layout}, {load} requests at once: {told.out_tok_s / (tp * dp):.1f} tok/s/GPU, TTFT "
        f"{_pair(told.ttft)}, TPOT {_pair(told.tpot)} ms (mean / P99); {_bar(told)}"
    )


def _pair(found: object) -> str:
    return f"{found.mean_ms:.1f} / {found.p99_ms:.1f}"  # type: ignore[attr-defined]


def _verdict(told: Estimate, ttft_ms: float, tpot_ms: float) -> str:
    means = told.ttft.mean_ms <= ttft_ms and told.tpot.mean_ms <= tpot_ms
    tails = told.ttft.p99_ms <= ttft_ms and told.tpot.p99_ms <= tpot_ms
    kept = "means and P99" if tails else "means only" if means else "not even the means"
    return f"limits TTFT {ttft_ms:.0f}, TPOT {tpot_ms:.0f} ms: kept by {kept}; {_bar(told)}"


def _bar(told: Estimate) -> str:
    return f"± {told.sigma.ttft:.0%} TTFT, ± {told.sigma.tpot:.0%} TPOT ({told.rung})"


if __name__ == "__main__":
    sys.exit(main())
