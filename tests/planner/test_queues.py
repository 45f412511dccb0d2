"""Waits against textbook formulas, in closed form and simulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.queueing import EngineRules, Lengths, Routing, StepCosts, prefill_pool
from planner.queueing.waits import erlang_c, mean_wait_s
from planner.simulate import MixedFleet, Pool, Requests, Spread, draw_arrivals, run_open

ONE_AT_A_TIME = EngineRules(max_num_batched_tokens=100_000, max_num_seqs=1, kv_blocks=100_000, async_scheduling=False)
PER_TOKEN = StepCosts(step_s=1e-9, prefill_token_s=1e-3)


def prompts(tokens: np.ndarray, arrival_s: np.ndarray) -> Requests:
    ones = np.ones(len(tokens), dtype=np.int64)
    return Requests(prompt_tokens=tokens, output_tokens=ones, cached_tokens=0 * ones, arrival_s=arrival_s)


def simulated_waits_s(requests: Requests, *, engines: int) -> np.ndarray:
    pool = Pool(engines=engines, costs=PER_TOKEN, rules=ONE_AT_A_TIME, spread=Spread.SHARED_QUEUE)
    return run_open(MixedFleet(pool=pool), requests).ttft_s - requests.prompt_tokens * 1e-3


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_erlang_c_by_hand(rho: float) -> None:
    assert erlang_c(1, rho) == pytest.approx(rho)
    assert erlang_c(2, 2 * rho) == pytest.approx(2 * rho**2 / (1 + rho))
    assert erlang_c(3, 3 * rho) == pytest.approx(9 * rho**3 / (2 + 4 * rho + 3 * rho**2))


def test_full_load_waits_for_ever() -> None:
    waits, mean = mean_wait_s(np.array([1.0, 2.0, 2.0]), 1.0, np.array([1.0, 2.0, 1.9]), arrival_scv=1, service_scv=1)
    assert waits.tolist()[:2] == [1, 1] and waits[2] < 1
    assert np.isinf(mean).tolist() == [True, True, False]


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_md1(rho: float) -> None:
    """Equal prompts, Poisson arrivals: mean wait ρ S / 2(1 - ρ)."""
    count = 60_000
    requests = prompts(np.full(count, 100), draw_arrivals(count, rate_rps=rho / 0.1, seed=3))
    formula = rho * 0.1 / (2 * (1 - rho))
    _, closed = mean_wait_s(1, rho / 0.1, 0.1, arrival_scv=1.0, service_scv=0.0)
    assert closed == pytest.approx(formula)
    assert simulated_waits_s(requests, engines=1).mean() == pytest.approx(formula, rel=0.05)


@pytest.mark.parametrize("engines", [1, 2, 5])
def test_mmk(engines: int) -> None:
    """Exponential prompts on a shared queue: mean wait C S / k(1 - ρ), and a share C waits."""
    count, rho, mean = 60_000, 0.7, 1_000
    tokens = np.maximum(1, np.random.default_rng(5).exponential(mean, count).astype(np.int64))
    rate = rho * engines / (tokens.mean() * 1e-3)
    waits_s = simulated_waits_s(prompts(tokens, draw_arrivals(count, rate_rps=rate, seed=6)), engines=engines)
    waiting = float(erlang_c(engines, rho * engines))
    assert np.mean(waits_s > 1e-6) == pytest.approx(waiting, rel=0.05)
    assert waits_s.mean() == pytest.approx(waiting * tokens.mean() * 1e-3 / (engines * (1 - rho)), rel=0.10)


@settings(max_examples=50)
@given(
    rows=st.lists(st.tuples(st.integers(1, 500), st.floats(0.001, 1.0)), min_size=1, max_size=40),
    slower=st.floats(1.0, 3.0),
)
def test_one_engine_one_at_a_time_obeys_lindley(rows: list[tuple[int, float]], slower: float) -> None:
    """Each wait is (wait + service - gap)+ of the one before; so a lower rate raises no wait at all."""
    tokens, gaps = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    requests = prompts(tokens, np.cumsum(gaps))
    waits_s = simulated_waits_s(requests, engines=1)
    wait_s, lindley = 0.0, []
    for service_s, gap_s in zip(np.concatenate(([0.0], tokens[:-1] * 1e-3)), gaps, strict=True):
        wait_s = max(0.0, wait_s + service_s - gap_s)
        lindley.append(wait_s)
    assert waits_s == pytest.approx(lindley, abs=1e-6)
    calm = replace(requests, arrival_s=requests.arrival_s * slower)
    assert np.all(simulated_waits_s(calm, engines=1) <= waits_s + 1e-6)


def test_a_mixed_wait_has_the_pool_formula_at_its_percentiles() -> None:
    """M/M/1: the sojourn is exponential with mean S / (1 - ρ), whatever way it is put together."""
    tokens = np.random.default_rng(7).exponential(1_000, 20_000) + 1
    lengths = Lengths.from_sample(np.column_stack([tokens, np.ones(len(tokens))]))
    rate = 0.6 / (tokens.mean() * 1e-3)
    pool = prefill_pool(PER_TOKEN, ONE_AT_A_TIME, lengths, engines=1, rate_rps=rate)
    for share in (0.5, 0.9, 0.99):
        sojourn_s = -np.log(1 - share) * tokens.mean() * 1e-3 / 0.4
        assert float(pool.ttft_s(share)) == pytest.approx(sojourn_s, rel=0.06)


def test_what_leaves_a_pool_is_as_bursty_as_what_keeps_it_busy() -> None:
    """Poisson in and exponential service: Poisson out. Equal prompts smooth what comes, the more so the fuller."""
    tokens = np.random.default_rng(8).exponential(1_000, 20_000) + 1
    exponential = Lengths.from_sample(np.column_stack([tokens, np.ones(len(tokens))]))
    pool = prefill_pool(PER_TOKEN, ONE_AT_A_TIME, exponential, engines=2, rate_rps=1.5)
    assert float(pool.departures_scv) == pytest.approx(1, abs=0.03)
    equal = Lengths.from_sample([(1_000, 1)])
    calm, busy = prefill_pool(
        PER_TOKEN, ONE_AT_A_TIME, equal, engines=1, rate_rps=np.array([0.01, 0.99])
    ).departures_scv
    assert calm == pytest.approx(1, abs=0.001) and busy == pytest.approx(0, abs=0.03)


def test_own_queues_are_worse_than_a_shared_one() -> None:
    lengths = Lengths.from_sample([(1_000, 1)])
    pools = [
        prefill_pool(PER_TOKEN, ONE_AT_A_TIME, lengths, engines=4, rate_rps=3.2, routing=routing) for routing in Routing
    ]
    shared, own = (float(pool.ttft_s(0.99)) for pool in pools)
    assert own > 1.5 * shared
