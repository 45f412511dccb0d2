"""Closed forms against the simulator: TTFT and TPOT at P50, P90 and P99; and what 10,000 configurations take.

    python tests/bench/closed_forms.py [--requests 30000]

A 70B model's step costs on four H100 (tests/planner/traffic.py). `no fit`: the batch with two standard deviations is
above max_num_seqs or the KV cache, and the closed form says so rather than answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from planner.queueing import (
    EngineRules,
    Goal,
    Lengths,
    Metric,
    Routing,
    StepCosts,
    decode_engine,
    max_rate_rps,
    mixed_engine,
    prefill_pool,
)
from planner.queueing.costs import Floats
from planner.simulate import MixedFleet, Outcome, Pool, SplitFleet, Spread, run_open
from tests.planner.traffic import CHAT, COSTS, RAG, REASONING, RULES, arriving

Rows = npt.NDArray[np.float64]
SHARES = (0.5, 0.9, 0.99)
CONFIGURATIONS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=30_000)
    count = parser.parse_args().requests
    print(f"{'load':<30}{'':6}{'simulated P50/90/99 ms':>26}{'closed form':>26}{'error %':>18}")
    for name, rows in (("chat", CHAT), ("RAG", RAG), ("reasoning", REASONING)):
        for load in (0.2, 0.4, 0.6, 0.75):
            _mixed(f"{name} {load}", rows, load, count)
    _mixed("bursty chat (scv 4) 0.6", CHAT, 0.6, count, scv=4.0)
    _mixed("chat 0.6, budget 8192", CHAT, 0.6, count, rules=replace(RULES, max_num_batched_tokens=8192))
    _mixed("RAG 0.6, budget 8192", RAG, 0.6, count, rules=replace(RULES, max_num_batched_tokens=8192))
    for engines in (1, 4, 16):
        for spread, routing in ((Spread.SHARED_QUEUE, Routing.SHARED_QUEUE), (Spread.RANDOM, Routing.RANDOM)):
            for rows, name in ((CHAT, "chat"), (RAG, "RAG")):
                _split(f"{engines}P {name} {spread} 0.7", rows, engines, spread, routing, count)
    _speed()
    return 0


def _mixed(name: str, rows: Rows, load: float, count: int, *, scv: float = 1.0, rules: EngineRules = RULES) -> None:
    lengths = Lengths.from_sample(rows)
    rate = load / float(mixed_engine(COSTS, rules, lengths, rate_rps=1.0).load)
    estimate = mixed_engine(COSTS, rules, lengths, rate_rps=rate, arrival_scv=scv)
    fleet = MixedFleet(pool=Pool(engines=1, costs=COSTS, rules=rules))
    outcome = run_open(fleet, arriving(rows, count, rate_rps=rate, arrival_scv=scv))
    fits = bool(estimate.fits)
    _row(name, "ttft", outcome, estimate.ttft_s, fits=fits)
    _row("", "tpot", outcome, estimate.tpot_s, fits=fits)
    _row("", "e2e", outcome, estimate.e2e_s, fits=fits)


def _split(name: str, rows: Rows, engines: int, spread: Spread, routing: Routing, count: int) -> None:
    """`engines` prefill engines, and as many decode engines as keep the batch low."""
    lengths = Lengths.from_sample(rows)
    rate = 0.7 / float(prefill_pool(COSTS, RULES, lengths, engines=engines, rate_rps=1.0).load)
    first = prefill_pool(COSTS, RULES, lengths, engines=engines, rate_rps=rate, routing=routing)
    then = decode_engine(COSTS, RULES, lengths, rate_rps=rate / engines)
    fleet = SplitFleet(
        prefill=Pool(engines=engines, costs=COSTS, rules=replace(RULES, async_scheduling=False), spread=spread),
        decode=Pool(engines=engines, costs=COSTS, rules=RULES),
    )
    outcome = run_open(fleet, arriving(rows, count, rate_rps=rate))
    _row(name, "ttft", outcome, first.ttft_s, fits=bool(first.fits))
    _row("", "tpot", outcome, then.tpot_s, fits=bool(then.fits))


def _row(name: str, metric: Metric, outcome: Outcome, quantile: Callable[[float], Floats], *, fits: bool) -> None:
    simulated = [outcome.percentile_s(metric, share) * 1e3 for share in SHARES]
    closed = [float(quantile(share)) * 1e3 for share in SHARES]
    errors = "".join(f"{100 * (b / a - 1):>+6.0f}" for a, b in zip(simulated, closed, strict=True))
    shown = (" / ".join(_ms(value) for value in values) for values in (simulated, closed))
    found, said = shown
    print(f"{name:<30}{metric:<6}{found:>26}{said if fits else 'no fit':>26}{errors if fits else '':>18}", flush=True)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 1_000 else f"{value:.0f}"


def _speed() -> None:
    """The highest rate under two goals, for many engines at once."""
    rng, lengths = np.random.default_rng(0), Lengths.from_sample(CHAT)
    costs = StepCosts(
        step_s=rng.uniform(0.005, 0.03, CONFIGURATIONS),
        prefill_token_s=rng.uniform(2e-5, 2e-4, CONFIGURATIONS),
        sequence_s=15e-6,
        kv_token_s=rng.uniform(5e-9, 5e-8, CONFIGURATIONS),
    )
    goals = [Goal(metric="ttft", share=0.9, limit_s=1.0), Goal(metric="tpot", share=0.9, limit_s=0.04)]
    for name, estimate, asked in (
        ("mixed engines", lambda rate: mixed_engine(costs, RULES, lengths, rate_rps=rate), goals),
        ("prefill pools", lambda rate: prefill_pool(costs, RULES, lengths, engines=4, rate_rps=rate), goals[:1]),
    ):
        walls_s = []
        for _ in range(5):
            start = time.perf_counter()
            max_rate_rps(estimate, asked)
            walls_s.append(time.perf_counter() - start)
        print(f"highest rate of {CONFIGURATIONS:,} {name}: {min(walls_s) * 1e3:.0f} ms (best of 5)")


if __name__ == "__main__":
    sys.exit(main())
