"""The offset of another machine's clock: within its bound whatever the network does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clock_offset import ClockOffset, Exchange, offset_of, over_run

delays = st.integers(0, 50_000_000)


@given(offset=st.integers(-(10**15), 10**15), trips=st.lists(st.tuples(delays, delays), min_size=1, max_size=20))
def test_the_true_offset_is_within_the_bound(offset: int, trips: list[tuple[int, int]]) -> None:
    now, exchanges = 10**12, []
    for there, back in trips:
        exchanges.append(Exchange(now, now + there + offset, now + there + back))
        now += there + back + 1000
    found = offset_of(exchanges)
    assert abs(found.offset_ns - offset) <= found.bound_ns
    assert found.bound_ns <= (min(there + back for there, back in trips) + 1) // 2 + 1, "no worse than the quickest"


def test_further_exchanges_cut_the_interval_down() -> None:
    slow_there, slow_back = Exchange(0, 1_000, 1_000), Exchange(2_000, 2_000, 3_000)
    assert offset_of([slow_there]) == ClockOffset(500, 500)
    assert offset_of([slow_there, slow_back]) == ClockOffset(0, 0)


def test_a_drift_widens_the_bound_and_moves_nothing() -> None:
    assert over_run(ClockOffset(100, 10), ClockOffset(130, 5)) == ClockOffset(100, 40)
    assert over_run(ClockOffset(100, 10), None) == ClockOffset(100, 10)


def test_without_an_exchange_there_is_no_offset() -> None:
    with pytest.raises(ValueError, match="no exchange"):
        offset_of([])
