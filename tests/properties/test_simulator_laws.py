"""Laws that any queue obeys, and so the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.queueing import EngineRules, Goal, StepCosts
from planner.simulate import (
    MixedFleet,
    Pool,
    Requests,
    SplitFleet,
    Spread,
    draw_arrivals,
    draw_requests,
    run_open,
    verify,
)

COSTS = StepCosts(step_s=0.01, prefill_token_s=1e-4, sequence_s=1e-5, kv_token_s=1e-7)
RULES = EngineRules(max_num_batched_tokens=512, max_num_seqs=32, kv_blocks=400, async_scheduling=False)
ROWS = [(20, 5), (300, 40), (800, 10), (1_500, 60), (50, 200)]

seeds = st.integers(0, 10_000)
rates = st.floats(0.5, 25)
burstiness = st.sampled_from([0.0, 0.5, 1.0, 6.0])


def arriving(count: int, rate: float, scv: float, seed: int) -> Requests:
    arrivals = draw_arrivals(count, rate_rps=rate, arrival_scv=scv, seed=seed)
    return replace(draw_requests(ROWS, count, seed=seed, prefix_share=0.3), arrival_s=arrivals)


def fleet(engines: int = 1, spread: Spread = Spread.LEAST_LOADED) -> MixedFleet:
    return MixedFleet(pool=Pool(engines=engines, costs=COSTS, rules=RULES, spread=spread))


def covered_s(starts: np.ndarray, ends: np.ndarray) -> float:
    """Length of the union of intervals; `starts` are sorted."""
    reach = np.maximum.accumulate(ends)
    return float((reach - np.maximum(starts, np.concatenate(([-np.inf], reach[:-1])))).clip(min=0).sum())


@settings(max_examples=60)
@given(rate=rates, scv=burstiness, seed=seeds)
def test_an_engine_works_whenever_there_is_work(rate: float, scv: float, seed: int) -> None:
    outcome = run_open(fleet(), arriving(300, rate, scv, seed))
    (engine,) = outcome.engines
    assert np.isclose(engine.busy_s, covered_s(outcome.sent_s, outcome.finish_s), rtol=1e-9)


@settings(max_examples=60)
@given(rate=rates, scv=burstiness, seed=seeds)
def test_one_engine_answers_in_order_of_arrival(rate: float, scv: float, seed: int) -> None:
    """Even through preemptions: who is thrown out goes to the head of the queue."""
    first_s = run_open(fleet(), arriving(300, rate, scv, seed)).first_token_s
    assert np.all(np.diff(first_s) >= -1e-12)


@settings(max_examples=60)
@given(rate=rates, scv=burstiness, seed=seeds, engines=st.integers(1, 4), spread=st.sampled_from(Spread))
def test_kv_stays_within_the_cache_and_is_given_back(
    rate: float, scv: float, seed: int, engines: int, spread: Spread
) -> None:
    outcome = run_open(fleet(engines, spread), arriving(200, rate * engines, scv, seed))
    assert all(engine.peak_kv_blocks <= RULES.kv_blocks for engine in outcome.engines)
    assert all(engine.left_kv_blocks == 0 for engine in outcome.engines)


@settings(max_examples=40)
@given(rate=rates, scv=burstiness, seed=seeds, spread=st.sampled_from(Spread))
def test_littles_law(rate: float, scv: float, seed: int, spread: Spread) -> None:
    """Sequences on engines x time, which the engines add up, equals the requests' times there: e2e less queueing.

    Each prompt here fits into one step, and no time is spent beside the engines, so that a request is on an engine
    from the step of its first token on. Two engine-side integrals and two of the requests bracket each other.
    """
    rules = replace(RULES, max_num_batched_tokens=100_000, kv_blocks=100_000)
    pool = Pool(engines=2, costs=COSTS, rules=rules, spread=spread)
    outcome = run_open(MixedFleet(pool=pool), arriving(300, rate, scv, seed))
    on_engines = sum(engine.sequence_seconds for engine in outcome.engines)
    decoding = float((outcome.finish_s - outcome.first_token_s).sum())
    assert decoding <= on_engines + 1e-6
    assert on_engines <= float(outcome.e2e_s.sum()) + 1e-6


@settings(max_examples=15)
@given(seed=seeds, rate=st.floats(1, 6), slower=st.floats(1.3, 4.0))
def test_a_lower_rate_raises_no_mean_wait(seed: int, rate: float, slower: float) -> None:
    """The same requests further apart. Batching makes this a law of means: a gap may put one request a step later."""
    requests = arriving(2_000, rate, 1.0, seed)
    calm = replace(requests, arrival_s=requests.arrival_s * slower)
    busy_s, calm_s = (run_open(fleet(), some).ttft_s.mean() for some in (requests, calm))
    assert calm_s <= busy_s * 1.01


@settings(max_examples=20)
@given(seed=seeds, rate=st.floats(1, 20), more=st.integers(1, 4))
def test_a_longer_draw_begins_with_the_shorter(seed: int, rate: float, more: int) -> None:
    short, long = arriving(50, rate, 1.0, seed), arriving(50 * more, rate, 1.0, seed)
    for field in ("prompt_tokens", "output_tokens", "arrival_s"):
        assert np.array_equal(getattr(short, field), getattr(long, field)[:50])


@settings(max_examples=20)
@given(seed=seeds, rate=st.floats(1, 8))
def test_a_split_fleet_loses_nothing(seed: int, rate: float) -> None:
    pool = fleet(2).pool
    outcome = run_open(SplitFleet(prefill=pool, decode=pool, transfer_s=0.02), arriving(300, rate, 1.0, seed))
    several = outcome.output_tokens > 1
    assert np.all(outcome.finish_s[several] >= outcome.first_token_s[several] + 0.02)
    assert all(engine.left_kv_blocks == 0 for engine in outcome.engines)


def test_verification_stops_early_when_the_answer_is_clear() -> None:
    pool = fleet(2)
    easy = verify(pool, ROWS, [Goal(metric="ttft", share=0.9, limit_s=30.0)], rate_rps=1.0)
    assert easy.met and easy.clear and len(easy.outcome.sent_s) == 1_000
    hopeless = verify(pool, ROWS, [Goal(metric="tpot", share=0.9, limit_s=0.001)], rate_rps=1.0)
    assert not hopeless.met and hopeless.clear and len(hopeless.outcome.sent_s) == 1_000
    tail = verify(pool, ROWS, [Goal(metric="ttft", share=0.99, limit_s=30.0)], rate_rps=1.0)
    assert tail.met and tail.clear and len(tail.outcome.sent_s) > 1_000


def test_intervals_hold_what_a_longer_run_finds() -> None:
    """At 95% and twelve seeds, two misses may happen by chance."""
    truth = run_open(fleet(), arriving(100_000, 4.0, 1.0, 1)).percentile_s("ttft", 0.9)
    found = [run_open(fleet(), arriving(6_000, 4.0, 1.0, seed)).interval_s("ttft", 0.9) for seed in range(2, 14)]
    assert sum(one.low <= truth <= one.high for one in found) >= 10
    assert max(one.half_width / one.value for one in found) < 0.5
