"""The simulator's jumps against the scheduler spelt out, and cases that a hand can check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import PlannerError
from planner.queueing import EngineRules, StepCosts
from planner.simulate import MixedFleet, Outcome, Pool, Requests, SplitFleet, Spread, run_closed, run_open
from tests.planner.naive_engine import Naive

# Sums of such numbers are exact in binary, so that two ways of adding agree on who came first.
TICK_S = 1 / 1024
ticks = st.integers(0, 6).map(lambda n: n * TICK_S)


@st.composite
def costs(draw: st.DrawFn) -> StepCosts:
    return StepCosts(
        step_s=draw(st.integers(1, 8)) * TICK_S,
        prefill_token_s=draw(ticks),
        sequence_s=draw(ticks),
        kv_token_s=draw(ticks) / 64,
        prefill_square_s=draw(ticks) / 64,
    )


@st.composite
def traffic(draw: st.DrawFn) -> tuple[EngineRules, Requests]:
    """A small engine whose KV cache is often too small for all, but never for one."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 25)), min_size=1, max_size=12))
    block = draw(st.sampled_from([1, 2, 4, 16]))
    seqs = draw(st.integers(1, 6))
    longest = max(p + o for p, o in lengths) + 1
    rules = EngineRules(
        max_num_batched_tokens=seqs + draw(st.integers(0, 40)),
        max_num_seqs=seqs,
        kv_blocks=-(-longest // block) + draw(st.integers(0, 12)),
        block_size_tokens=block,
        async_scheduling=draw(st.booleans()),
    )
    gaps = draw(st.lists(st.integers(0, 60), min_size=len(lengths), max_size=len(lengths)))
    prompt, output = np.array(lengths, dtype=np.int64).T
    cached = np.minimum(prompt - 1, draw(st.integers(0, 8)))
    requests = Requests(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        arrival_s=np.cumsum(np.array(gaps, dtype=float)) * TICK_S,
    )
    return rules, requests


def requests_of(*rows: tuple[int, int, float]) -> Requests:
    """From (prompt tokens, output tokens, arrival)."""
    prompt, output, arrival = zip(*rows, strict=True)
    return Requests(
        prompt_tokens=np.array(prompt),
        output_tokens=np.array(output),
        cached_tokens=np.zeros(len(rows), dtype=np.int64),
        arrival_s=np.array(arrival, dtype=float),
    )


def one_engine(step_costs: StepCosts, rules: EngineRules) -> MixedFleet:
    return MixedFleet(pool=Pool(engines=1, costs=step_costs, rules=rules))


@settings(max_examples=400)
@given(step_costs=costs(), case=traffic())
def test_jumps_agree_with_the_scheduler_spelt_out(step_costs: StepCosts, case: tuple[EngineRules, Requests]) -> None:
    rules, requests = case
    outcome = run_open(one_engine(step_costs, rules), requests)
    naive = Naive(costs=step_costs, rules=rules, requests=requests).run()
    order = range(len(requests))
    assert outcome.first_token_s == pytest.approx([naive.first_token_s[i] for i in order], abs=1e-9)
    assert outcome.finish_s == pytest.approx([naive.finish_s[i] for i in order], abs=1e-9)
    assert outcome.preemptions == naive.preemptions
    (engine,) = outcome.engines
    assert engine.left_kv_blocks == 0
    assert engine.peak_kv_blocks <= rules.kv_blocks


def test_two_requests_by_hand() -> None:
    """Step 1 computes prompt A (10 tokens). B comes in step 1 and is computed in step 2, in which A decodes."""
    step_costs = StepCosts(step_s=1.0, prefill_token_s=0.1, sequence_s=0.01, kv_token_s=0.001)
    rules = EngineRules(max_num_batched_tokens=64, max_num_seqs=8, kv_blocks=99, async_scheduling=False)
    outcome = run_open(one_engine(step_costs, rules), requests_of((10, 3, 0.0), (20, 2, 0.5)))
    first = 1 + 0.1 * 10 + 0.01
    second = first + 1 + 0.1 * 20 + 0.02 + 0.001 * 11
    third = second + 1 + 0.02 + 0.001 * (12 + 21)
    assert outcome.first_token_s == pytest.approx([first, second])
    assert outcome.finish_s == pytest.approx([third, third])
    assert outcome.ttft_s == pytest.approx([first, second - 0.5])
    assert outcome.tpot_s == pytest.approx([(third - first) / 2, third - second])


def test_async_scheduling_sees_an_arrival_one_step_later() -> None:
    step_costs = StepCosts(step_s=1.0)
    rules = EngineRules(max_num_batched_tokens=64, max_num_seqs=8, kv_blocks=99)
    arrivals = requests_of((10, 9, 0.0), (10, 2, 1.5))
    assert run_open(one_engine(step_costs, rules), arrivals).first_token_s == pytest.approx([1, 4])
    rules = replace(rules, async_scheduling=False)
    assert run_open(one_engine(step_costs, rules), arrivals).first_token_s == pytest.approx([1, 3])


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    """Budget 10: A decodes, so B's 25 tokens take 9 + 9 + 7."""
    rules = EngineRules(max_num_batched_tokens=10, max_num_seqs=2, kv_blocks=99, async_scheduling=False)
    outcome = run_open(one_engine(StepCosts(step_s=1.0), rules), requests_of((10, 9, 0.0), (25, 2, 0.0)))
    assert outcome.first_token_s == pytest.approx([1, 4])


def test_the_last_admitted_is_preempted_and_computed_again() -> None:
    """Four blocks of 4: both prompts take two, and after one token each A needs a fifth block."""
    rules = EngineRules(
        max_num_batched_tokens=32, max_num_seqs=4, kv_blocks=4, block_size_tokens=4, async_scheduling=False
    )
    outcome = run_open(one_engine(StepCosts(step_s=1.0), rules), requests_of((8, 4, 0.0), (8, 4, 0.0)))
    assert outcome.preemptions == 1
    assert outcome.first_token_s == pytest.approx([1, 1])
    assert outcome.finish_s == pytest.approx([4, 7])  # A alone until 4; then B's 9 tokens again, and two more
    assert outcome.engines[0].peak_kv_blocks == 4


def test_kv_moves_to_the_decode_pool_after_the_first_token() -> None:
    rules = EngineRules(max_num_batched_tokens=64, max_num_seqs=8, kv_blocks=99, async_scheduling=False)
    prefill = Pool(engines=1, costs=StepCosts(step_s=1.0, overhead_s=0.25), rules=rules)
    decode = Pool(engines=1, costs=StepCosts(step_s=0.5), rules=rules)
    fleet = SplitFleet(prefill=prefill, decode=decode, transfer_s=0.1, transfer_token_s=0.01)
    requests = requests_of((10, 3, 0.0), (10, 1, 0.0))
    outcome = run_open(fleet, requests)
    assert outcome.first_token_s == pytest.approx([1.25, 1.25])
    assert outcome.finish_s == pytest.approx([1.25 + 0.2 + 2 * 0.5, 1.25])
    late = run_open(replace(fleet, late_first_token=True), requests)
    assert late.first_token_s == pytest.approx([1.45, 1.25])


@settings(max_examples=100)
@given(
    step_costs=costs(),
    case=traffic(),
    concurrency=st.integers(1, 6),
    engines=st.integers(1, 3),
    spread=st.sampled_from([Spread.ROUND_ROBIN, Spread.LEAST_LOADED, Spread.RANDOM]),
    split=st.booleans(),
)
def test_a_closed_loop_replayed_as_arrivals_gives_the_same(
    step_costs: StepCosts,
    case: tuple[EngineRules, Requests],
    concurrency: int,
    engines: int,
    spread: Spread,
    split: bool,
) -> None:
    """The two loops share no code above the engine: one jumps from end to end, the other from arrival to arrival."""
    rules, requests = case
    pool = Pool(engines=engines, costs=step_costs, rules=replace(rules, async_scheduling=False), spread=spread)
    fleet = SplitFleet(prefill=pool, decode=pool, transfer_s=TICK_S) if split else MixedFleet(pool=pool)
    closed = run_closed(fleet, requests, concurrency=concurrency)
    replayed = run_open(fleet, replace(requests, arrival_s=closed.sent_s))
    assert same(closed, replayed)


def same(one: Outcome, other: Outcome) -> bool:
    pairs = [(one.first_token_s, other.first_token_s), (one.finish_s, other.finish_s)]
    return all(np.allclose(a, b, rtol=0, atol=1e-9) for a, b in pairs)


@pytest.mark.parametrize("spread", list(Spread))
def test_the_same_seed_gives_the_same_run(spread: Spread) -> None:
    rules = EngineRules(max_num_batched_tokens=64, max_num_seqs=8, kv_blocks=99)
    pool = Pool(engines=3, costs=StepCosts(step_s=1.0, prefill_token_s=0.1), rules=rules, spread=spread)
    requests = requests_of(*[(10 + i % 7, 1 + i % 5, i * 0.7) for i in range(60)])
    one, other = (run_open(MixedFleet(pool=pool), requests, seed=4) for _ in range(2))
    assert np.array_equal(one.finish_s, other.finish_s)
    assert spread is not Spread.RANDOM or not same(one, run_open(MixedFleet(pool=pool), requests, seed=5))


def test_a_request_that_can_never_fit_is_refused() -> None:
    rules = EngineRules(max_num_batched_tokens=64, max_num_seqs=8, kv_blocks=4, block_size_tokens=4)
    with pytest.raises(PlannerError, match="kv_blocks"):
        run_open(one_engine(StepCosts(step_s=1.0), rules), requests_of((10, 6, 0.0)))
