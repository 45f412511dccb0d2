"""How fast the simulator is: requests per second of one core, by fleet and by load.

    python tests/bench/simulator_speed.py [--requests 1000000] [--quick]

The first row is the promise: a million requests of chat on one engine under 60 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from planner.queueing import EngineRules, Lengths, mixed_engine, prefill_pool
from planner.simulate import Fleet, MixedFleet, Pool, SplitFleet, Spread, run_closed, run_open
from tests.planner.traffic import CHAT, COSTS, RAG, REASONING, RULES, arriving

Rows = npt.NDArray[np.float64]
MILLION = 1_000_000
SHARE_OF_THE_REST = 10
"""The other rows take a tenth of the requests."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=MILLION)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the requests")
    arguments = parser.parse_args()
    most = arguments.requests // (20 if arguments.quick else 1)
    fewer = max(1, most // SHARE_OF_THE_REST)
    print(f"{'fleet':<44}{'requests':>10}{'wall s':>9}{'requests/s':>12}{'us each':>9}{'preempted':>11}")
    small = replace(RULES, kv_blocks=7_000)
    _open("chat, 1 mixed engine, load 0.6", _mixed(1), CHAT, most, 0.6)
    _open("chat, load 0.3", _mixed(1), CHAT, fewer, 0.3)
    _open("RAG, load 0.75", _mixed(1), RAG, fewer, 0.75)
    _open("reasoning, load 0.4", _mixed(1), REASONING, fewer, 0.4)
    _open("chat, KV cache too small, load 0.6", _mixed(1, small), CHAT, fewer, 0.6)
    for spread in Spread:
        _open(f"chat, 8 mixed engines, {spread}, load 0.6", _mixed(8, spread=spread), CHAT, fewer, 0.6)
    _split("chat, 4 prefill + 4 decode, load 0.7", fewer)
    _row("chat, closed loop of 64", _mixed(1), CHAT, fewer, users=64)
    return 0


def _mixed(engines: int, rules: EngineRules = RULES, *, spread: Spread = Spread.ROUND_ROBIN) -> MixedFleet:
    return MixedFleet(pool=Pool(engines=engines, costs=COSTS, rules=rules, spread=spread))


def _open(name: str, fleet: MixedFleet, rows: Rows, count: int, load: float) -> None:
    full = fleet.pool.engines / float(mixed_engine(COSTS, RULES, Lengths.from_sample(rows), rate_rps=1.0).load)
    _row(name, fleet, rows, count, rate_rps=load * full)


def _split(name: str, count: int) -> None:
    pool = Pool(engines=4, costs=COSTS, rules=RULES)
    rate = 0.7 / float(prefill_pool(COSTS, RULES, Lengths.from_sample(CHAT), engines=4, rate_rps=1.0).load)
    _row(name, SplitFleet(prefill=pool, decode=pool, transfer_token_s=7e-6), CHAT, count, rate_rps=rate)


def _row(name: str, fleet: Fleet, rows: Rows, count: int, *, rate_rps: float = 1.0, users: int = 0) -> None:
    start = time.perf_counter()
    requests = arriving(rows, count, rate_rps=rate_rps)
    outcome = run_closed(fleet, requests, concurrency=users) if users else run_open(fleet, requests)
    outcome.percentile_s("ttft", 0.99)
    wall_s = time.perf_counter() - start
    rate = count / wall_s
    print(f"{name:<44}{count:>10,}{wall_s:>9.2f}{rate:>12,.0f}{1e6 / rate:>9.1f}{outcome.preemptions:>11,}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
