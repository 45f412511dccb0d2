"""Which requests have to be ended from this side: those that took too long, and the longest where all hold too much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from loadtest.http.connection import Flight
from loadtest.types import Ending, Limits

NS_PER_S = 1_000_000_000


class Overdue(NamedTuple):
    flight: Flight
    ending: Ending
    why: str


def too_late(flights: Iterable[Flight], limits: Limits, now_ns: int) -> list[Overdue]:
    """Those that have no end after `timeout_s`, or of which nothing came for `idle_timeout_s`."""
    since_ns = now_ns - round(limits.timeout_s * NS_PER_S)
    idle_since_ns = now_ns - round((limits.idle_timeout_s or limits.timeout_s) * NS_PER_S)
    late = []
    for flight in flights:
        if not flight.send_ns or flight.send_ns >= max(since_ns, idle_since_ns):
            continue
        if flight.send_ns < since_ns:
            late.append(Overdue(flight, Ending.TIMED_OUT, f"no end within {limits.timeout_s:g} s"))
        elif (flight.read_ns[-1] if flight.read_ns else flight.send_ns) < idle_since_ns:
            late.append(Overdue(flight, Ending.TIMED_OUT, f"nothing came for {limits.idle_timeout_s:g} s"))
    return late


def too_much(flights: Iterable[Flight], limits: Limits) -> list[Overdue]:
    """The longest answers, as few as do, where all those under way are more than `answers_bytes` together."""
    by_length = sorted(flights, key=lambda flight: flight.answer_bytes)
    surplus_bytes = sum(flight.answer_bytes for flight in by_length) - limits.answers_bytes
    longest = []
    while surplus_bytes > 0:
        flight = by_length.pop()
        surplus_bytes -= flight.answer_bytes
        why = f"the longest of answers that held more than {limits.answers_bytes / 2**20:g} MiB (--max-answers-mib)"
        longest.append(Overdue(flight, Ending.TOO_LONG, why))
    return longest
