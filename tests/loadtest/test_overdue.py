"""Which requests have to be ended: too late, or too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.http.connection import Flight
from loadtest.overdue import NS_PER_S, too_late, too_much
from loadtest.types import Ending, Limits

BOTH = Limits(timeout_s=60, idle_timeout_s=5)


def flight(*, sent_s: float = 0.0, read_s: float | None = None, answer_bytes: int = 0) -> Flight:
    one = Flight(1, b"", 0)
    one.send_ns = round(sent_s * NS_PER_S)
    one.read_ns = [] if read_s is None else [round(read_s * NS_PER_S)]
    one.answer_bytes = answer_bytes
    return one


@pytest.mark.parametrize(
    ("limits", "one", "why"),
    [
        (BOTH, flight(sent_s=0), None),  # waits for a connection
        (BOTH, flight(sent_s=96), None),
        (BOTH, flight(sent_s=94), "nothing came for 5 s"),
        (BOTH, flight(sent_s=50, read_s=96), None),
        (BOTH, flight(sent_s=50, read_s=94), "nothing came for 5 s"),
        (BOTH, flight(sent_s=39, read_s=99), "no end within 60 s"),
        (Limits(timeout_s=60), flight(sent_s=41, read_s=41), None),
        (Limits(timeout_s=60), flight(sent_s=39, read_s=39), "no end within 60 s"),
        (Limits(timeout_s=5, idle_timeout_s=60), flight(sent_s=94, read_s=99), "no end within 5 s"),
    ],
)
def test_a_hundred_seconds_after_the_start(limits: Limits, one: Flight, why: str | None) -> None:
    late = too_late([one], limits, 100 * NS_PER_S)
    assert [(ending, told) for _, ending, told in late] == ([(Ending.TIMED_OUT, why)] if why else [])


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(1, 4000))
def test_the_longest_are_ended_and_no_more_than_do(lengths: list[int], answers_bytes: int) -> None:
    flights = [flight(answer_bytes=length) for length in lengths]
    ended = [one.flight for one in too_much(flights, Limits(answers_bytes=answers_bytes))]
    left = [one.answer_bytes for one in flights if one not in ended]
    gone = [one.answer_bytes for one in ended]
    assert sum(left) <= answers_bytes
    assert not gone or (sum(left) + min(gone) > answers_bytes and min(gone) >= max(left, default=0))
