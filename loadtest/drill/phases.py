"""When a load was harmed, and when it had recovered. Pure. Times are seconds from the load's start.

A request is *harmed* while it waits for its first token longer than the limit, while it says nothing between two tokens
or before it breaks for longer than the limit, and at the failure that ended it. The limits are the SLO's or, where that
has none, twice the P99 before the first action. A second counts as disturbed if more requests are harmed in it than is
usual: than in any second before the first action. An action has been recovered from at the end of its last disturbed
second; too close to the end of the run, or to the next action, nothing can be said. The second in which the next action
comes is the next action's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.metrics import quantile
from loadtest.types import Outcome, Record, Slo, Times

LIMIT_OF_P99 = 2.0
# This long nothing may be disturbed before the run ends, or the recovery is not seen.
SETTLED_S = 3.0
ENDED_BY_US = frozenset({Outcome.UNFINISHED, Outcome.UNSENT})

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Harm:
    """Above these a request is harmed; None where nothing says what would be late."""

    ttft_ms: float | None
    gap_ms: float | None
    from_slo: bool


@dataclass(frozen=True, slots=True)
class Recovery:
    """`disturbed_s`: seconds of the run in which more was harmed than before. `after_s`: from the action on.

    `after_s` is 0 if nothing was disturbed, and None if the run ended (or the next action came) too early to tell.
    """

    after_s: float | None
    disturbed_s: int
    harmed_most: int
    """Requests harmed at once, in the worst second."""


def harm_of(before: Sequence[Record], slo: Slo) -> Harm:
    """`before`: the records of requests that count and had ended when the first action began."""
    ok = [record for record in before if record.ok]
    ttfts_ms = np.sort([record.ttft_ns / 1e6 for record in ok if record.ttft_ns is not None])
    gaps = [record.gaps_ns / 1e6 for record in ok]
    gaps_ms = np.sort(np.concatenate(gaps)) if gaps else np.empty(0)
    return Harm(
        ttft_ms=slo.ttft_ms if slo.ttft_ms is not None else _limit_ms(ttfts_ms),
        gap_ms=slo.max_gap_ms if slo.max_gap_ms is not None else _limit_ms(gaps_ms),
        from_slo=slo.ttft_ms is not None and slo.max_gap_ms is not None,
    )


def harmed_spans(record: Record, harm: Harm, start_ns: int) -> Iterator[Span]:
    """When this request was harmed. One that hung until we ended it was, by the silence and not by its end."""
    if harm.ttft_ms is not None:
        yield from _beyond(harm.ttft_ms, np.array([record.due_ns, record.first_ns or record.end_ns]), start_ns)
    if harm.gap_ms is not None:
        heard_ns = record.event_ns if record.ok else np.append(record.event_ns, record.end_ns)
        yield from _beyond(harm.gap_ms, heard_ns, start_ns)
    if not record.ok and record.outcome not in ENDED_BY_US:
        yield _s(record.end_ns, start_ns), _s(record.end_ns, start_ns)


def _beyond(limit_ms: float, instants_ns: Times, start_ns: int) -> Iterator[Span]:
    """Of each wait from one of these instants to the next what is beyond the limit."""
    limit_ns = limit_ms * 1e6
    for at in np.flatnonzero(np.diff(instants_ns) > limit_ns):
        yield _s(int(instants_ns[at] + limit_ns), start_ns), _s(int(instants_ns[at + 1]), start_ns)


def harmed_per_second(spans_of: Iterable[Iterable[Span]], until_s: float) -> list[int]:
    """How many requests were harmed in each second of the run; each counts once a second."""
    counts = [0] * max(1, math.ceil(until_s))
    for spans in spans_of:
        seconds = {
            second
            for begin, end in spans
            for second in range(max(0, math.floor(begin)), min(len(counts) - 1, math.floor(end)) + 1)
        }
        for second in seconds:
            counts[second] += 1
    return counts


def usual_of(harmed: Sequence[int], first_action_s: float) -> int:
    """The most requests harmed in one second before the first action."""
    return max((count for second, count in enumerate(harmed) if second + 1 <= first_action_s), default=0)


def recovery(harmed: Sequence[int], usual: int, action_s: float, next_s: float | None, end_s: float) -> Recovery:
    """Of one action; `next_s` is when the next one came, None for the last."""
    window = range(math.floor(action_s), len(harmed) if next_s is None else min(len(harmed), math.floor(next_s)))
    disturbed = [second for second in window if harmed[second] > usual]
    recovered_s = disturbed[-1] + 1.0 if disturbed else action_s
    seen = (end_s if next_s is None else next_s) - recovered_s >= SETTLED_S
    return Recovery(
        after_s=recovered_s - action_s if seen else None,
        disturbed_s=len(disturbed),
        harmed_most=max((harmed[second] for second in window), default=0),
    )


def _limit_ms(ordered_ms: np.ndarray) -> float | None:
    return LIMIT_OF_P99 * quantile(ordered_ms, 0.99) if len(ordered_ms) else None


def _s(at_ns: int, start_ns: int) -> float:
    return (at_ns - start_ns) / 1e9
