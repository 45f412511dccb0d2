"""The figures against ones that were computed another way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import by_class, in_window, meets, quantile, stretch, summarise, wilson
from loadtest.types import Flag, Outcome, Slo
from tests.loadtest.builders import MS, record

quantiles = st.floats(0, 1)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), quantiles)
def test_quantiles_are_those_of_numpy(values: list[float], q: float) -> None:
    assert quantile(np.sort(values), q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 1e6), max_size=20), st.integers(1, 20), quantiles)
def test_infinite_values_stand_behind_all_others(values: list[float], infinite: int, q: float) -> None:
    ordered = np.sort(np.array(values))
    found = quantile(ordered, q, infinite)
    # A quantile is finite exactly if all that it is made of is.
    place = q * (len(values) + infinite - 1)
    assert math.isfinite(found) == (math.ceil(place) < len(values))


def test_no_values_have_no_quantile() -> None:
    assert math.isnan(quantile(np.empty(0), 0.5))


@pytest.mark.parametrize(
    ("met", "total", "low", "high"),
    # Newcombe 1998, table I, method 3 (Wilson's score interval without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_the_literature(met: int, total: int, low: float, high: float) -> None:
    assert wilson(met, total) == pytest.approx((low, high), abs=5e-5)


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_request_meets_the_slo_when_it_meets_every_limit() -> None:
    one = record([100, 150, 250])
    assert meets(one, Slo(ttft_ms=100, tpot_ms=75, e2e_ms=250, max_gap_ms=100))
    assert not meets(one, Slo(ttft_ms=99.9))
    assert not meets(one, Slo(tpot_ms=74.9))
    assert not meets(one, Slo(e2e_ms=249.9))
    assert not meets(one, Slo(max_gap_ms=99.9))
    assert meets(record([100]), Slo(tpot_ms=1, max_gap_ms=1)), "one event has neither"


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_whatever_did_not_complete_misses(outcome: Outcome) -> None:
    assert not meets(record(outcome=outcome), Slo(ttft_ms=1e9))


def test_attainment_counts_all_that_were_due() -> None:
    records = [
        *(record([100, 150], number=n) for n in range(6)),
        record([900, 950], number=6),
        record([100], Outcome.CUT, number=7),
        record([], Outcome.SHED, number=8),
        record([], Outcome.UNSENT, number=9),
    ]
    summary = summarise(records, Slo(ttft_ms=500), window_s=2.0)
    assert summary.attainment is not None and (summary.attainment.met, summary.attainment.due) == (6, 10)
    assert summary.goodput_rps == 3.0 and summary.due_rps == 5.0 and summary.completed_rps == 3.5
    assert summary.outcomes == {Outcome.OK: 7, Outcome.CUT: 1, Outcome.SHED: 1, Outcome.UNSENT: 1}
    ttft = summary.distributions["ttft"]
    assert ttft.completed_ms[0.5] == 100 and ttft.max_ms == 900
    assert ttft.all_ms[0.5] == 100 and ttft.all_ms[0.9] == math.inf


@pytest.mark.parametrize(("service_ms", "out_rps"), [(80, 10.0), (100, 10.0), (150, 6.67), (400, 2.5)])
def test_a_server_that_falls_behind_gives_out_less_than_comes_in(service_ms: int, out_rps: float) -> None:
    """One server, a request every 100 ms for 20 s: beyond 10/s its own pace counts, not that of the sending."""
    records, free_ms = [], 0.0
    for number in range(200):
        free_ms = max(free_ms, number * 100.0) + service_ms
        records.append(record([free_ms - 10, free_ms], number=number, due_ms=number * 100.0, output_tokens=5))
    summary = summarise(records, Slo(), 20.0, open_loop=True)
    assert summary.due_rps == 10.0
    assert summary.completed_rps == pytest.approx(out_rps, rel=0.001)
    assert summary.output_tokens_per_s == pytest.approx(5 * out_rps, rel=0.001)
    assert summarise(records, Slo(), 20.0).completed_rps == 10.0, "a closed loop waits for its answers"


@pytest.mark.parametrize("cv", [0.5, 1.0])
@pytest.mark.parametrize(("count", "mean_ms"), [(20, 3_000.0), (100, 15_000.0), (300, 30_000.0)])
def test_answers_of_unequal_length_are_no_queue(count: int, mean_ms: float, cv: float) -> None:
    """Five a second, all served at once: however much their lengths differ, they come out as they were due."""
    rng = np.random.default_rng(count)
    kept_up = 0
    for _ in range(100):
        due_ms = np.sort(rng.uniform(0, 200 * count, count))
        end_ms = due_ms + rng.gamma(1 / cv**2, mean_ms * cv**2, count)
        pairs = zip(due_ms.tolist(), end_ms.tolist(), strict=True)
        kept_up += stretch([record([due, end], due_ms=due) for due, end in pairs]) == 1.0
    assert kept_up >= 98


def test_without_a_first_token_the_user_waits_for_the_end() -> None:
    whole = replace(record([900, 950]), streamed=False, first_ns=0, last_ns=0)
    assert meets(whole, Slo(ttft_ms=950)) and not meets(whole, Slo(ttft_ms=949))


def test_requests_all_due_at_once_have_no_pace_to_keep() -> None:
    records = [record([100 * n], number=n) for n in range(1, 20)]
    assert summarise(records, Slo(), 2.0, open_loop=True).completed_rps == 9.5


def test_cut_streams_keep_their_gaps_and_add_an_endless_one() -> None:
    records = [record([100, 150, 200], number=n) for n in range(4)]
    records.append(record([100, 600], Outcome.CUT, number=4))
    gap = summarise(records, Slo(), 1.0).distributions["gap"]
    assert gap.count == 8 and gap.max_ms == 50 and gap.completed_ms[0.99] == 50
    # The eight of 50, that of 500, the endless one.
    assert gap.all_ms[0.5] == 50 and gap.all_ms[0.99] == math.inf


def test_lag_is_part_of_ttft_but_not_of_the_net_one() -> None:
    summary = summarise([record([130], due_ms=10, send_ms=30)], Slo(), 1.0)
    assert summary.distributions["ttft"].mean_ms == 120 and summary.distributions["ttft_net"].mean_ms == 100


def test_the_window_begins_after_the_warm_up() -> None:
    records = [record(number=n, due_ms=500 * n) for n in range(4)]
    assert [one.number for one in in_window(records, start_ns=0, warmup_s=1.0)] == [2, 3]
    assert [one.number for one in in_window(records, start_ns=600 * MS, warmup_s=0)] == [2, 3]


def test_classes_are_summed_apart_and_flags_counted() -> None:
    records = [record(slo_class="fast"), record(slo_class="slow", flags=(Flag.NO_USAGE,)), record(slo_class="fast")]
    assert {name: len(some) for name, some in by_class(records).items()} == {"fast": 2, "slow": 1}
    assert summarise(records, Slo(), 1.0).flags == {"no_usage": 1}


def test_an_empty_run_has_a_summary() -> None:
    summary = summarise([], Slo(ttft_ms=1), 0.0)
    assert summary.due == 0 and summary.distributions == {} and math.isnan(summary.due_rps)
