"""Search for a capacity, sweep and compare: the pure parts, against systems whose truth is known."""

from __future__ import annotations

import heapq
import json
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from loadtest.cli import load_app
from loadtest.rates.capacity import Fit, Run, fit, student
from loadtest.rates.compare import QUANTILES, Blocks, Change, Ranked, compare
from loadtest.rates.decide import Done, Ending, Goal, Probe, Try, bracket, capacity, decide
from loadtest.rates.search import BRIEF_RUN_S, FULL_RUN_S, run_lengths_s, searched_slo
from loadtest.rates.searched import Searched, as_tree, met_and_missed, statement
from loadtest.rates.sequential import Batch, Side, requests_to_tell, side
from loadtest.rates.sweep import knee, parse_rates, row_of, show_rows
from loadtest.report import build
from loadtest.results import save
from loadtest.truth import Law, Queue
from loadtest.types import LoadTestError, Promise, Record, Slo
from tests.loadtest.builders import record
from tests.loadtest.test_results import result, some

WANTED = 0.9
BRIEF, FULL = 80, 320


def share_at(rate_rps: float, capacity_rps: float, slope: float) -> float:
    """The log-odds of the wanted share fall with the log of the rate."""
    logit = math.log(WANTED / (1 - WANTED)) + slope * math.log(capacity_rps / rate_rps)
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))


def searched(capacity_rps: float, slope: float, goal: Goal, seed: int, jitter: float = 0.0) -> tuple[list[Probe], Done]:
    """Everything that a search would do with a server of that capacity, whose log scatters by `jitter` among runs."""
    rng, probes = np.random.default_rng(seed), list[Probe]()
    while isinstance(step := decide(probes, goal), Try):
        each = (BRIEF if step.brief else FULL) // 8
        share = share_at(step.rate_rps, capacity_rps * math.exp(jitter * rng.standard_normal()), slope)
        batches = tuple(Batch(each, int(rng.binomial(each, share))) for _ in range(8))
        probes.append(Probe(Run(step.rate_rps, batches), step.brief))
    return probes, step


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(capacity_rps=st.floats(0.05, 500), slope=st.floats(3, 80), seed=st.integers(0, 10**6))
def test_a_search_ends_and_comes_near_the_capacity(capacity_rps: float, slope: float, seed: int) -> None:
    goal = Goal(WANTED)
    probes, end = searched(capacity_rps, slope, goal, seed)
    assert end.ending in (Ending.FOUND, Ending.RUNS_SPENT) and len(probes) <= goal.max_runs
    found = capacity(probes, goal)
    assert found is not None and found.rate_rps == pytest.approx(capacity_rps, rel=0.3)
    if end.ending is Ending.FOUND:
        assert found.half_width <= goal.precision and found.low_rps <= found.rate_rps <= found.high_rps


@pytest.mark.slow
def test_the_interval_holds_the_capacity_as_often_as_it_says() -> None:
    held = []
    for seed in range(60):
        probes, end = searched(7.3, 12.0, Goal(WANTED), seed)
        found = capacity(probes, Goal(WANTED))
        assert end.ending is Ending.FOUND and found is not None
        held.append(found.low_rps <= 7.3 <= found.high_rps)
    assert sum(held) >= 54  # 57 are due; below 54 is chance once in ten thousand


@pytest.mark.slow
def test_a_cliff_that_moves_from_run_to_run_is_not_taken_for_sure() -> None:
    slope, jitter, goal = 200.0, 0.03, Goal(WANTED, precision=0.1)
    of_run = [7.3 * math.exp(jitter * NormalDist().inv_cdf((place + 0.5) / 999)) for place in range(999)]
    known_rps = next(
        rate_rps
        for rate_rps in np.geomspace(7.3, 6, 500)
        if fmean(share_at(rate_rps, capacity_rps, slope) for capacity_rps in of_run) >= WANTED
    )
    held = 0
    for seed in range(16):
        probes, end = searched(7.3, slope, goal, seed, jitter)
        found = capacity(probes, goal)
        assert end.ending is Ending.FOUND and found is not None
        held += found.low_rps <= known_rps <= found.high_rps
    assert held >= 13, "of 16; it says 95 of a hundred"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_brief_runs_flatter_and_that_does_not_fall_to_nothing_above_its_limit(seed: int) -> None:
    """As real engines do: a queue takes a while to grow, and those that come before it has grown are served in time."""
    rng, probes, goal = np.random.default_rng(seed), list[Probe](), Goal(WANTED, precision=0.1, max_runs=30)
    while isinstance(step := decide(probes, goal), Try):
        limit_rps = 4.0 * math.exp(0.03 * rng.standard_normal()) * (1.2 if step.brief else 1.0)
        share = 1.0 if step.rate_rps <= limit_rps else 0.7 * math.exp(-(step.rate_rps / limit_rps - 1) / 0.15)
        in_time = round(200 * share)
        batches = tuple(Batch(25, max(0, min(25, in_time - 25 * n))) for n in range(8))
        probes.append(Probe(Run(step.rate_rps, batches), step.brief))
    found = capacity(probes, goal)
    assert step.ending is Ending.FOUND and found is not None
    # At 3.93 some 29% of the runs are beyond their limit, and lose a third of their requests.
    assert found.low_rps < 3.93 < found.high_rps and found.rate_rps == pytest.approx(3.93, rel=0.05)
    assert met_and_missed(probes, WANTED)[1] < 4.6, "what brief runs met, at 4.76, bounds nothing"


QUEUES = ((Queue(4, 0.02, Law.FIXED), 0.04), (Queue(8, 0.02, Law.EXPONENTIAL), 0.08))


@pytest.mark.slow
@pytest.mark.parametrize(("queue", "limit_s"), QUEUES, ids=("M/D/4", "M/M/8"))
def test_the_capacity_of_a_queue_is_found_though_its_waits_hang_together(queue: Queue, limit_s: float) -> None:
    known_rps = queue.capacity_rps(limit_s, WANTED)
    errors, held = [], 0
    for seed in range(6):
        found = searched_queue(queue, limit_s, seed)
        errors.append(found.rate_rps / known_rps - 1)
        held += found.low_rps <= known_rps <= found.high_rps
    assert max(map(abs, errors)) < 0.07 and abs(np.mean(errors)) < 0.03, errors
    assert held >= 5, "of six; it says 95 of a hundred"


def searched_queue(queue: Queue, limit_s: float, seed: int) -> Fit:
    """A whole search, its runs as long as `search` makes them."""
    goal, probes = Goal(WANTED, start_rps=queue.saturation_rps / 4), list[Probe]()
    seeds = np.random.SeedSequence(seed)
    while isinstance(step := decide(probes, goal), Try):
        count = math.ceil(1.1 * step.rate_rps * (BRIEF_RUN_S if step.brief else FULL_RUN_S))
        kept = answered_within(queue, step.rate_rps, count, limit_s, np.random.default_rng(seeds.spawn(1)[0]))
        parts = np.array_split(kept[count // 11 :], 8)
        probes.append(Probe(Run(step.rate_rps, tuple(Batch(len(p), int(p.sum())) for p in parts)), step.brief))
    found = capacity(probes, goal)
    assert found is not None
    return found


def answered_within(
    queue: Queue, rate_rps: float, count: int, limit_s: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which requests of a run are answered in time, first come first served."""
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, count))
    exponential = queue.law is Law.EXPONENTIAL
    service = rng.exponential(queue.service_s, count) if exponential else np.full(count, queue.service_s)
    free, kept = [0.0] * queue.servers, np.zeros(count, bool)
    for n, (at, each) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        ends = max(at, heapq.heappop(free)) + each
        heapq.heappush(free, ends)
        kept[n] = ends - at <= limit_s
    return kept


@pytest.mark.parametrize(("low", "high", "ending"), [(0.01, 4.0, Ending.ALL_MEET), (20.0, 90.0, Ending.NONE_MEETS)])
def test_a_capacity_outside_the_bounds_is_said_to_be_outside(low: float, high: float, ending: Ending) -> None:
    _, end = searched(10.0, 20.0, Goal(WANTED, start_rps=low, min_rps=low, max_rps=high), seed=1)
    assert end.ending is ending


def test_a_client_that_is_the_limit_ends_the_search() -> None:
    assert decide(SPOILT[:1], Goal(WANTED)) == Try(1.0, brief=True)
    assert decide(SPOILT, Goal(WANTED)) == Done(Ending.CLIENT_LIMIT)
    assert not bracket(SPOILT, Goal(WANTED)).low_rps


SPOILT = [Probe(Run(1.0, (Batch(10, 10),)), brief=True, valid=False)] * 3


@pytest.mark.parametrize(
    ("goal", "ending"),
    [
        (Goal(WANTED), Ending.FOUND),
        (Goal(WANTED, 0.01, 0.01, 4.0), Ending.ALL_MEET),
        (Goal(WANTED, 20.0, 20.0, 90.0), Ending.NONE_MEETS),
    ],
)
def test_the_last_run_allowed_tells_as_much_as_any(goal: Goal, ending: Ending) -> None:
    probes, end = searched(7.3, 12.0, goal, seed=1)
    assert end.ending is ending
    assert decide(probes, replace(goal, max_runs=len(probes))) == end
    assert decide(probes[:-1], replace(goal, max_runs=len(probes) - 1)) == Done(Ending.RUNS_SPENT)


def test_a_client_that_is_the_limit_to_the_last_run_is_told() -> None:
    assert decide(SPOILT, Goal(WANTED, max_runs=3)) == Done(Ending.CLIENT_LIMIT)
    assert decide(SPOILT[:2], Goal(WANTED, max_runs=2)) == Done(Ending.RUNS_SPENT)


def test_a_run_that_was_stopped_in_its_warm_up_is_a_row_without_figures() -> None:
    made = result(some(5), interrupted=True)
    row = row_of(2.0, build(replace(made, spec=replace(made.spec, warmup_s=9.0))), "load-abc.json")
    assert row.attainment is None and math.isnan(row.completed_rps) and knee([row]) is None
    told = StringIO()
    show_rows([row], Console(file=told, width=200))
    assert "nan" not in told.getvalue()


@given(wanted=st.floats(0.5, 0.999))
def test_a_brief_run_can_be_clear(wanted: float) -> None:
    count = requests_to_tell(wanted)
    assert side(count, count, wanted) is Side.MET
    assert side(count, 0, wanted) is Side.MISSED


@pytest.mark.parametrize(("confidence", "degrees", "exact"), [(0.95, 3, 3.182), (0.95, 10, 2.228), (0.99, 5, 4.032)])
def test_quantiles_of_student(confidence: float, degrees: float, exact: float) -> None:
    assert student(confidence, degrees) == pytest.approx(exact, rel=0.01)


def test_a_fit_without_runs_knows_nothing() -> None:
    assert fit([], WANTED, 1.0) is None


@pytest.mark.parametrize(
    ("servers", "law", "rate", "limit_s", "within"),
    [
        (1, Law.EXPONENTIAL, 0.5, 4.0, 1 - math.exp(-0.5 * 4.0)),  # M/M/1: the sojourn is exponential with mu - lambda
        (1, Law.FIXED, 0.5, 1.0, 0.5),  # M/D/1: who finds nobody
        (1, Law.EXPONENTIAL, 1.5, 100.0, 0.0),
    ],
)
def test_queues_of_textbooks(servers: int, law: Law, rate: float, limit_s: float, within: float) -> None:
    assert Queue(servers, 1.0, law).within(rate, limit_s) == pytest.approx(within, abs=1e-9)


@pytest.mark.parametrize("law", list(Law))
@pytest.mark.parametrize("servers", [1, 3])
def test_queues_against_a_simulation(servers: int, law: Law) -> None:
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(1 / (0.7 * servers), 60_000))
    service = rng.exponential(1.0, 60_000) if law is Law.EXPONENTIAL else np.ones(60_000)
    free = [0.0] * servers
    took = []
    for at, each in zip(arrivals.tolist(), service.tolist(), strict=True):
        free.sort()
        free[0] = max(at, free[0]) + each
        took.append(free[0] - at)
    for limit_s in (1.5, 3.0):
        seen = float(np.mean(np.array(took) <= limit_s))
        assert Queue(servers, 1.0, law).within(0.7 * servers, limit_s) == pytest.approx(seen, abs=0.015)


def test_what_a_search_counts_by() -> None:
    slo, wanted = searched_slo(Slo(ttft_ms=500, attainment=0.9))
    assert slo.ttft_ms == 500 and wanted == 0.9
    slo, wanted = searched_slo(Slo(promises=(Promise("ttft", 99.0, 400.0), Promise("tpot", 99.0, 30.0))))
    assert (slo.ttft_ms, slo.tpot_ms, wanted) == (400, 30, 0.99)
    mixed = Slo(ttft_ms=500, attainment=0.9, promises=(Promise("ttft", 99.0, 900.0),))
    for odd in (mixed, Slo(), Slo(ttft_ms=1, attainment=1.0), Slo(promises=(Promise("ttft", None, 400.0),))):
        with pytest.raises(LoadTestError):
            searched_slo(odd)


@pytest.mark.parametrize(
    ("slo", "brief_s", "full_s"),
    [
        (Slo(ttft_ms=150), BRIEF_RUN_S, FULL_RUN_S),
        (Slo(tpot_ms=50), BRIEF_RUN_S, FULL_RUN_S),
        (Slo(ttft_ms=3000, e2e_ms=60_000), 15, 30),
        (Slo(e2e_ms=4000), 20, 40),
    ],
)
def test_runs_last_a_few_times_what_a_request_may_wait(slo: Slo, brief_s: float, full_s: float) -> None:
    """Else a swamped server would seem to meet the SLO, as its queue had no time to grow."""
    assert run_lengths_s(slo) == (brief_s, full_s)


def probe(rate_rps: float, met: int, *, brief: bool = True) -> Probe:
    """A run of 40 requests, the misses at its end."""
    batches = [Batch(5, min(5, max(0, met - 5 * n))) for n in range(8)]
    return Probe(Run(rate_rps, tuple(batches)), brief)


def test_a_search_that_was_interrupted_names_the_runs_that_bound_the_capacity() -> None:
    goal = Goal(WANTED)
    probes = (probe(2.0, 40), probe(4.0, 5), probe(2.83, 40), probe(3.36, 12), probe(3.1, 34, brief=False))
    told = Searched(goal, Ending.INTERRUPTED, capacity(probes, goal), probes, took_s=90.0)
    assert told.fit is not None and (not told.fit.low_rps or math.isinf(told.fit.high_rps)), "too few to be sure"
    assert "met up to 2.83, missed from 3.1 on" in statement(told) and "interrupted" in statement(told)
    assert told.known is not None and (told.known.low_rps, told.known.high_rps) == (2.83, 3.1)
    tree = as_tree(told)
    assert (tree["met_rps"], tree["missed_rps"]) == (2.83, 3.1)


@pytest.mark.parametrize(
    ("full", "bounds"),
    [
        (((3.0, 40), (3.5, 10)), (3.0, 3.5)),
        (((3.0, 40), (3.5, 10), (3.2, 12), (3.3, 40)), (3.0, 3.5)),
        (((3.0, 40), (3.1, 40)), (3.1, 4.0)),
        (((3.6, 4), (3.5, 10)), (2.0, 3.5)),
        (((1.5, 4), (3.9, 40)), (0.0, 4.0)),
    ],
)
def test_what_was_met_and_missed(full: Sequence[tuple[float, int]], bounds: tuple[float, float]) -> None:
    brief = (probe(1.6, 40), probe(2.0, 40), probe(4.0, 5), probe(8.0, 0), probe(3.55, 40))
    probes = (*brief, *(probe(rate_rps, met, brief=False) for rate_rps, met in full))
    assert met_and_missed(probes, WANTED) == bounds


def test_a_search_that_is_sure_names_its_interval() -> None:
    probes, end = searched(7.3, 12.0, Goal(WANTED), seed=1)
    told = Searched(Goal(WANTED), end.ending, capacity(probes, Goal(WANTED)), tuple(probes), took_s=90.0)
    assert told.fit is not None and told.known is not None and told.known.low_rps == told.fit.low_rps
    assert f"95%: {told.fit.low_rps:.4g} to {told.fit.high_rps:.4g}" in statement(told)


def test_a_search_that_bracketed_nothing_bounds_nothing() -> None:
    told = Searched(Goal(WANTED), Ending.INTERRUPTED, None, (probe(2.0, 40),), took_s=9.0)
    assert told.known is None and "not found" in statement(told)
    assert (as_tree(told)["met_rps"], as_tree(told)["missed_rps"]) == (2.0, None)


def test_rates_of_a_sweep() -> None:
    assert parse_rates("4,1,2,2") == [1, 2, 4]
    assert parse_rates("1:5:3") == [1, 3, 5]
    for odd in ("", "0,1", "1:2", "a", "1:2:0", "inf"):
        with pytest.raises(LoadTestError):
            parse_rates(odd)


def run_of(ttft_ms: Sequence[float]) -> list[Record]:
    return [
        record([100.0 * n + ttft, 100.0 * n + ttft + 50], number=n, due_ms=100.0 * n) for n, ttft in enumerate(ttft_ms)
    ]


def test_a_shift_is_seen_and_chance_is_not() -> None:
    rng = np.random.default_rng(3)
    usual, again = rng.lognormal(4, 0.3, 400), rng.lognormal(4, 0.3, 400)
    same = compare(run_of(usual), run_of(again), Slo(ttft_ms=80))
    assert same.paired and not same.worse
    slower = compare(run_of(usual), run_of(usual * 1.2), Slo(ttft_ms=80))
    changes = {one.metric: one.change for one in slower.differences}
    assert changes["TTFT p50"] is Change.WORSE and changes["within the SLO"] is Change.WORSE
    assert changes["TPOT p50"] is Change.UNCLEAR and changes["completed"] is Change.UNCLEAR
    faster = compare(run_of(usual * 1.2), run_of(usual), Slo(ttft_ms=80))
    assert {one.metric: one.change for one in faster.differences}["TTFT p50"] is Change.BETTER
    assert not compare(run_of(usual), run_of(usual[:100])).paired


@given(
    values=st.lists(st.none() | st.integers(1, 50).map(lambda ms: ms * 1e6), min_size=1, max_size=30),
    data=st.data(),
)
def test_quantiles_of_a_drawing_are_those_of_what_it_holds(values: list[float | None], data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    held = [value / 1e6 for value, count in zip(values, times, strict=True) if value is not None for _ in range(count)]
    found = Ranked.of(values).quantiles(np.array(times, dtype=np.intp))
    assert np.isnan(found).all() if not held else found == pytest.approx(np.quantile(held, [*QUANTILES.values()]))


@given(count=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_drawing_holds_as_many_requests_as_there_are(count: int, seed: int) -> None:
    blocks = Blocks.drawn(count, np.random.default_rng(seed))
    assert all(len(times := blocks.times(n)) == count and times.sum() == count for n in (0, 1, 1999))


def test_a_comparison_needs_no_memory_for_each_drawing() -> None:
    usual = run_of(np.random.default_rng(3).lognormal(4, 0.3, 1000))
    tracemalloc.start()
    try:
        compare(usual, usual)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2000 * len(usual), "not even a byte for each request that is drawn"


def test_a_comparison_leaves_the_warm_up_out(tmp_path: Path) -> None:
    """The first 20 are slow, and due in it."""
    made = result(some(60, late=20))
    for name, warmup_s in (("a", 2.0), ("b", 2.0), ("c", 9.0)):
        one = replace(made, spec=replace(made.spec, warmup_s=warmup_s))
        save(one, build(one), tmp_path / name)
    told = CliRunner().invoke(load_app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    tree = json.loads(told.stdout.splitlines()[-1])
    worst = next(row for row in tree["differences"] if row["metric"] == "TTFT p99")
    assert tree["requests"] == [40, 40] and worst["a"] == pytest.approx(100)
    told = CliRunner().invoke(load_app, ["compare", str(tmp_path / "a"), str(tmp_path / "c")])
    assert told.exit_code == 2 and "--warmup-s" in told.output


@pytest.mark.slow
def test_the_interval_of_a_comparison_covers_the_truth() -> None:
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        one, other = rng.exponential(100, 300), rng.exponential(110, 300)
        found = compare(run_of(one), run_of(other), seed=seed)
        median = next(difference for difference in found.differences if difference.metric == "TTFT p50")
        held += median.low <= 10 * math.log(2) <= median.high
    assert held >= 16
