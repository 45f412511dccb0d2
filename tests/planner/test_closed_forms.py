"""Closed forms against the simulator, with the error that was measured as a bound; and laws of the closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import PlannerError
from planner.queueing import (
    EngineRules,
    Goal,
    Lengths,
    Routing,
    StepCosts,
    closed_loop,
    decode_engine,
    max_rate_rps,
    mixed_engine,
    prefill_pool,
)
from planner.simulate import MixedFleet, Outcome, Pool, SplitFleet, Spread, run_closed, run_open
from tests.planner.traffic import CHAT, COSTS, RAG, REASONING, RULES, arriving

Rows = npt.NDArray[np.float64]
SHARES = (0.5, 0.9, 0.99)
COUNT = 20_000
LENGTHS = Lengths.from_sample(CHAT)
GOALS = (Goal(metric="ttft", share=0.9, limit_s=1.0), Goal(metric="tpot", share=0.99, limit_s=0.05))


def off_by(outcome: Outcome, metric: str, quantile: object) -> list[float]:
    return [float(quantile(share)) / outcome.percentile_s(metric, share) - 1 for share in SHARES]


def rate_at(load: float, rows: Rows, rules: EngineRules = RULES) -> float:
    return load / float(mixed_engine(COSTS, rules, Lengths.from_sample(rows), rate_rps=1.0).load)


# Worst relative error at P50, P90 and P99: (TTFT, TPOT), as tests/bench/closed_forms.py measured it, and a little room.
LOADS = {
    "chat 0.4": (CHAT, 0.4, 1.0, 0.10, 0.07),
    "chat 0.6": (CHAT, 0.6, 1.0, 0.14, 0.08),
    "RAG 0.4": (RAG, 0.4, 1.0, 0.17, 0.10),
    "RAG 0.6": (RAG, 0.6, 1.0, 0.22, 0.10),
    "RAG 0.75": (RAG, 0.75, 1.0, 0.27, 0.12),
    "bursty chat 0.6": (CHAT, 0.6, 4.0, 0.22, 0.06),
    "reasoning 0.4": (REASONING, 0.4, 1.0, 0.08, 0.08),
}


@pytest.mark.parametrize("name", list(LOADS))
def test_a_mixed_engine_against_the_simulator(name: str) -> None:
    rows, load, scv, ttft_bound, tpot_bound = LOADS[name]
    rate = rate_at(load, rows)
    estimate = mixed_engine(COSTS, RULES, Lengths.from_sample(rows), rate_rps=rate, arrival_scv=scv)
    assert estimate.fits
    pool = Pool(engines=1, costs=COSTS, rules=RULES)
    outcome = run_open(MixedFleet(pool=pool), arriving(rows, COUNT, rate_rps=rate, arrival_scv=scv))
    assert max(map(abs, off_by(outcome, "ttft", estimate.ttft_s))) < ttft_bound
    assert max(map(abs, off_by(outcome, "tpot", estimate.tpot_s))) < tpot_bound
    assert max(map(abs, off_by(outcome, "e2e", estimate.e2e_s))) < 0.14


def test_a_full_batch_is_rejected_where_the_simulator_queues() -> None:
    rate = rate_at(0.75, CHAT)
    estimate = mixed_engine(COSTS, RULES, LENGTHS, rate_rps=rate)
    outcome = run_open(MixedFleet(pool=Pool(engines=1, costs=COSTS, rules=RULES)), arriving(CHAT, COUNT, rate_rps=rate))
    assert not estimate.fits
    assert outcome.percentile_s("ttft", 0.9) > 3 * float(estimate.ttft_s(0.9))


def test_a_kv_cache_too_small_is_rejected_where_the_simulator_preempts() -> None:
    rate = rate_at(0.6, CHAT)
    small = replace(RULES, kv_blocks=5_000)
    assert mixed_engine(COSTS, RULES, LENGTHS, rate_rps=rate).fits
    assert not mixed_engine(COSTS, small, LENGTHS, rate_rps=rate).fits
    pool = Pool(engines=1, costs=COSTS, rules=small)
    short = CHAT[CHAT.sum(axis=1) < 5_000 * 16 - 1]
    assert run_open(MixedFleet(pool=pool), arriving(short, 5_000, rate_rps=rate)).preemptions > 0


def test_a_split_fleet_against_the_simulator() -> None:
    engines, rules = 4, replace(RULES, async_scheduling=False)
    rate = 0.7 / float(prefill_pool(COSTS, rules, LENGTHS, engines=engines, rate_rps=1.0).load)
    first = prefill_pool(COSTS, rules, LENGTHS, engines=engines, rate_rps=rate)
    scv = 1 + (first.departures_scv - 1) / engines  # of what one of the engines gets
    then = decode_engine(COSTS, RULES, LENGTHS, rate_rps=rate / engines, arrival_scv=scv, transfer_s=7e-6 * 500)
    fleet = SplitFleet(
        prefill=Pool(engines=engines, costs=COSTS, rules=rules, spread=Spread.SHARED_QUEUE),
        decode=Pool(engines=engines, costs=COSTS, rules=RULES, spread=Spread.ROUND_ROBIN),
        transfer_token_s=7e-6,
    )
    outcome = run_open(fleet, arriving(CHAT, COUNT, rate_rps=rate))
    assert max(map(abs, off_by(outcome, "ttft", first.ttft_s))) < 0.25
    assert max(map(abs, off_by(outcome, "tpot", then.tpot_s))) < 0.08


@pytest.mark.parametrize(("rows", "users"), [(CHAT, 1), (CHAT, 64), (CHAT, 400), (RAG, 8), (RAG, 64)])
def test_a_closed_loop_against_the_simulator(rows: Rows, users: int) -> None:
    estimate = closed_loop(COSTS, RULES, Lengths.from_sample(rows), concurrency=users)
    requests = arriving(rows, max(1_000, 20 * users), rate_rps=1.0)
    outcome = run_closed(MixedFleet(pool=Pool(engines=1, costs=COSTS, rules=RULES)), requests, concurrency=users)
    steady = slice(int(0.3 * len(requests)), int(0.8 * len(requests)))
    decoding_s = (outcome.finish_s - outcome.first_token_s)[steady].sum()
    assert float(estimate.tpot_s) == pytest.approx(decoding_s / (outcome.output_tokens - 1)[steady].sum(), rel=0.08)
    assert float(estimate.ttft_s) == pytest.approx(outcome.ttft_s[steady].mean(), rel=0.20)
    assert bool(estimate.queues) == (users == 400)


def test_arrays_give_what_single_configurations_give() -> None:
    costs = replace(COSTS, step_s=np.array([0.01, 0.02, 0.5]), prefill_square_s=np.array([0.0, 1e-9, 1e-9]))
    rules = replace(RULES, kv_blocks=np.array([60_000.0, 2_000.0, 500.0]))
    rate = np.array([8.0, 5.0, 40.0])
    many = mixed_engine(costs, rules, LENGTHS, rate_rps=rate)
    for i in range(3):
        one = mixed_engine(costs.row(i), rules.row(i), LENGTHS, rate_rps=rate[i])
        assert bool(one.fits) == bool(many.fits[i])
        for share in SHARES:
            assert float(one.ttft_s(share)) == pytest.approx(float(many.ttft_s(share)[i]))
            assert float(one.tpot_s(share)) == pytest.approx(float(many.tpot_s(share)[i]))
    assert many.load[2] > 1 and np.isinf(many.ttft_s(0.5)[2]) and np.isinf(many.tpot_s(0.5)[2])


def test_the_highest_rate_is_the_edge() -> None:
    def estimate(rate: object) -> object:
        return mixed_engine(replace(COSTS, step_s=np.array([0.008, 0.011, 0.2])), RULES, LENGTHS, rate_rps=rate)

    found = max_rate_rps(estimate, GOALS)
    assert found[0] > found[1] > found[2] == 0
    below, above = estimate(found * 0.998), estimate(found * 1.01)
    kept = [[e.fits & (e.exceeds(g.metric, g.limit_s) <= 1 - g.share) for g in GOALS] for e in (below, above)]
    assert np.all(kept[0], axis=0).tolist() == [True, True, False]
    assert np.all(kept[1], axis=0).tolist() == [False, False, False]


step_costs = st.builds(
    StepCosts,
    step_s=st.floats(0.002, 0.05),
    prefill_token_s=st.floats(1e-6, 3e-4),
    sequence_s=st.floats(0, 1e-4),
    kv_token_s=st.floats(0, 2e-7),
    prefill_square_s=st.floats(0, 1e-8),
)


@settings(max_examples=60)
@given(costs=step_costs, limits=st.tuples(st.floats(0.02, 5), st.floats(0.01, 0.3)), looser=st.floats(1, 3))
def test_what_helps_never_lowers_the_rate(costs: StepCosts, limits: tuple[float, float], looser: float) -> None:
    def rate(costs: StepCosts, rules: EngineRules, slack: float) -> float:
        goals = [
            Goal(metric="ttft", share=0.9, limit_s=limits[0] * slack),
            Goal(metric="tpot", share=0.9, limit_s=limits[1] * slack),
        ]
        return float(max_rate_rps(lambda at: mixed_engine(costs, rules, LENGTHS, rate_rps=at), goals)[0])

    grain = 1 / float(mixed_engine(costs, RULES, LENGTHS, rate_rps=1.0).load) / 1000
    small = replace(RULES, kv_blocks=4_000)
    now = rate(costs, small, 1.0)
    assert rate(costs, small, looser) >= now - grain
    assert rate(costs, replace(small, kv_blocks=4_000 * looser), 1.0) >= now - grain
    assert rate(replace(costs, step_s=costs.step_s / looser), small, 1.0) >= now - grain


@settings(max_examples=100)
@given(costs=step_costs, load=st.floats(0.02, 0.95), share=st.sampled_from(SHARES), rows=st.sampled_from([0, 1, 2]))
def test_every_percentile_rises_with_the_rate(costs: StepCosts, load: float, share: float, rows: int) -> None:
    lengths = Lengths.from_sample((CHAT, RAG, REASONING)[rows])
    full = 1 / float(mixed_engine(costs, RULES, lengths, rate_rps=1.0).load)
    rates = np.array([load * 0.9, load]) * full
    estimate = mixed_engine(costs, RULES, lengths, rate_rps=rates)
    for quantile in (estimate.ttft_s(share), estimate.e2e_s(share)):
        assert quantile[1] >= quantile[0] * (1 - 1e-6)
    assert estimate.mean_tpot_s[1] >= estimate.mean_tpot_s[0] * (1 - 1e-6)
    pool = prefill_pool(costs, RULES, lengths, engines=3, rate_rps=rates, routing=Routing.RANDOM)
    assert pool.ttft_s(share)[1] >= pool.ttft_s(share)[0] * (1 - 1e-6)


def test_answers_of_one_token_are_prefill_only() -> None:
    estimate = mixed_engine(COSTS, RULES, Lengths.from_sample([(100, 1), (300, 1)]), rate_rps=5.0)
    assert float(estimate.batch) == 0
    assert np.isfinite(estimate.ttft_s(0.9)) and np.isfinite(estimate.tpot_s(0.9))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: StepCosts(step_s=0.0), "step_s"),
        (lambda: StepCosts(step_s=np.array([1.0, np.nan])), "step_s"),
        (lambda: StepCosts(step_s=1.0, kv_token_s=-1e-9), "kv_token_s"),
        (lambda: EngineRules(max_num_batched_tokens=8, max_num_seqs=16, kv_blocks=9), "max_num_batched_tokens"),
        (lambda: EngineRules(max_num_batched_tokens=8, max_num_seqs=8, kv_blocks=0), "kv_blocks"),
        (lambda: Lengths.from_sample([]), "sample"),
        (lambda: Lengths.from_sample([(0, 3)]), "sample"),
        (lambda: Lengths.from_sample([(5, 3)], prefix_share=1.5), "prefix_share"),
        (lambda: Goal(metric="ttft", share=99, limit_s=1.0), "share"),
        (lambda: Goal(metric="ttft", share=0.99, limit_s=0.0), "limit_s"),
    ],
)
def test_odd_values_are_refused(make: object, key: str) -> None:
    with pytest.raises(PlannerError, match=key):
        make()
