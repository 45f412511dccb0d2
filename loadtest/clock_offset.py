"""How far another machine's clock is from ours, from questions and answers. Pure. All times in ns.

A clock that was read between the sending of a question and the coming of its answer was read within that while, so
its offset lies within an interval, however unlike the two ways are. Each further exchange cuts the interval down. (NTP
takes the middle of the quickest exchange, RFC 5905 §8; the intersection, after Marzullo 1984, is never wider.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question: sent and answered on our clock, read in between on theirs."""

    sent_ns: int
    theirs_ns: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Their clock less ours, and how far that may be off either way."""

    offset_ns: int
    bound_ns: int


HERE = ClockOffset(0, 0)
"""Of a process of this machine: one clock for all."""


def offset_of(exchanges: Sequence[Exchange]) -> ClockOffset:
    """From exchanges of one short while, in which the clocks hardly drift. Raises ValueError without any."""
    if not exchanges:
        raise ValueError("no exchange, no offset")
    low_ns = max(one.theirs_ns - one.received_ns for one in exchanges)
    high_ns = min(one.theirs_ns - one.sent_ns for one in exchanges)
    return ClockOffset((low_ns + high_ns) // 2, max(0, -(-(high_ns - low_ns) // 2)))


def over_run(before: ClockOffset, after: ClockOffset | None) -> ClockOffset:
    """The offset to reckon a run with: that of its start, where the common start was agreed. What the clocks drifted
    apart until its end widens the bound; without a second look nobody knows, and the first one's bound stands."""
    if after is None:
        return before
    drift_ns = abs(after.offset_ns - before.offset_ns)
    return ClockOffset(before.offset_ns, max(before.bound_ns, after.bound_ns) + drift_ns)
