"""The comparison of simulator and engine, on a server whose latencies are known: it must see them and simulate them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.truth import TruthConfig, TruthServer
from loadtest.types import LoadTestError, Target
from planner import profile_from
from planner.queueing import EngineRules, StepCosts

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from parts.engine_loads import EngineLoad, compare, draw_lengths, loads_of

pytestmark = pytest.mark.slow

STEP_MS = 20.0
# A truth server with `slots` is an engine whose steps take the same time whatever is in them.
COSTS = StepCosts(step_s=STEP_MS / 1e3)
RULES = EngineRules(
    max_num_batched_tokens=4096, max_num_seqs=2, kv_blocks=1_000, block_size_tokens=16, async_scheduling=False
)
PROFILE = profile_from(
    {
        "model": "smollm2-135m", "system": "here", "kind": "cpu", "measured": "2026-11-25", "kv_blocks": 1_000,
        "points": [{
            "isl": 8, "osl": 8, "concurrency": 1, "requests": 4, "out_tok_s": 50,
            "ttft_ms": dict.fromkeys(("mean", "p50", "p90", "p99"), STEP_MS),
        }],
    },
    file="p",
)  # fmt: skip


def test_a_queueing_server_is_simulated_as_measured() -> None:
    lengths = draw_lengths(60, isl=12, osl=10, cv=0.5, longest=200, seed=2)
    # Two places, answers of ten tokens at 20 ms: ten requests per second fill it.
    load = EngineLoad(share=0.7, rate_rps=7.0, lengths=lengths, seed=2)
    with TruthServer(TruthConfig(ttft_ms=STEP_MS, gap_ms=STEP_MS, slots=2)) as truth:
        found = compare(Target(truth.base_url, "/v1/completions"), "truth", PROFILE, COSTS, RULES, load)
    assert found.measured["tpot"][0] == pytest.approx(STEP_MS, abs=3)
    assert found.simulated["tpot"] == pytest.approx((STEP_MS,) * 3)
    # Places are given step by step in the simulator, and at once by the server: two steps of difference.
    for told, seen in zip(found.simulated["ttft"], found.measured["ttft"], strict=True):
        assert told == pytest.approx(seen, abs=3 * STEP_MS, rel=0.25)


def test_a_request_that_fails_ends_the_comparison() -> None:
    load = EngineLoad(share=0.5, rate_rps=20.0, lengths=np.full((4, 2), 5), seed=0)
    with (
        TruthServer(TruthConfig(error_share=1.0)) as truth,
        pytest.raises(LoadTestError, match="4 requests failed"),
    ):
        compare(Target(truth.base_url, "/v1/completions"), "truth", PROFILE, COSTS, RULES, load)


def test_loads_are_shares_of_what_fills_the_engine() -> None:
    costs = StepCosts(step_s=0.01, prefill_token_s=1e-3)
    lengths = np.full((10, 2), (100, 1))
    low, high = loads_of(PROFILE, costs, RULES, lengths, (0.25, 0.5), seed=0)
    assert high.rate_rps == pytest.approx(2 * low.rate_rps)
    assert high.rate_rps * 0.1 == pytest.approx(0.5, rel=0.1)  # 0.1 s of prefill each
