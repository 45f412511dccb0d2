"""What a drill did, and what became of the streams. Pure. Times are seconds from the load's start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from loadtest.cost import S_PER_HOUR
from loadtest.drill.phases import Harm, Recovery, harm_of, harmed_per_second, harmed_spans, recovery, usual_of
from loadtest.drill.texts import TextCheck
from loadtest.metrics import by_class, in_window, meets, quantile
from loadtest.moves import MovesTotal, total_of
from loadtest.types import Outcome, Record, Slo

MAX_TOUCHED = 200

SloOf = Callable[[str], Slo]

BEFORE, DURING, AFTER = "before", "during", "after"


@dataclass(frozen=True, slots=True)
class ActionDone:
    """One action as it went. `emptied_s`: for a drain, when the replica had nothing left; None if that was not seen."""

    what: str
    at_s: float
    began_s: float
    took_s: float
    ok: bool
    told: str
    replica: str = ""
    emptied_s: float | None = None

    def emptied_at(self, at_s: float) -> ActionDone:
        return replace(self, emptied_s=at_s)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds; None where there is none."""

    count: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run. Before are the requests that had ended by the first action, save those of the warm-up; after
    are those due after the last recovery, and during all others. Gaps belong to a phase by the instant of their end."""

    name: str
    from_s: float
    until_s: float
    due: int
    outcomes: Mapping[str, int]
    met: int | None
    """Requests that met the SLO; None without one."""
    ttft: Latencies
    tpot: Latencies
    gap: Latencies


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams that were open when an action began, and what became of them."""

    open: int
    completed: int
    cut: int
    lost: int
    """That did not complete, the cut ones among them."""
    outcomes: Mapping[str, int]
    moves: MovesTotal | None
    """None: the server told nothing of moves."""
    longest_gap: Latencies
    """Of each open stream, from the action on."""


@dataclass(frozen=True, slots=True)
class ActionReport:
    action: ActionDone
    streams: Streams
    recovery: Recovery


@dataclass(frozen=True, slots=True)
class Touched:
    """A stream that moved, was harmed or did not complete while an action had its effect."""

    number: int
    request_id: str
    outcome: str
    detail: str
    moves: Sequence[str] | None
    """Reason and mode of each; None: the server told nothing of moves."""
    ttft_ms: float | None
    longest_gap_ms: float | None


@dataclass(frozen=True, slots=True)
class DrillReport:
    harms: Mapping[str, Harm]
    """By SLO class."""
    phases: tuple[Phase, ...]
    actions: tuple[ActionReport, ...]
    undone: tuple[str, ...]
    """Actions that the run's end came before."""
    touched: tuple[Touched, ...]
    touched_count: int
    harmed_per_second: tuple[int, ...]
    texts: TextCheck | None
    extra_usd: float | None = None
    """What the actions cost, see `extra_usd`. None without a price or an SLO, or where nothing was seen before them."""


def drill_report(
    records: Sequence[Record],
    slo_of: SloOf,
    done: Sequence[ActionDone],
    undone: Sequence[str],
    *,
    run_id: str,
    start_ns: int,
    warmup_s: float = 0.0,
    texts: TextCheck | None = None,
    usd_per_hour: float | None = None,
) -> DrillReport:
    """`records`: all of the run; `slo_of`: the SLO of a class; `done`: in their order.

    What was due in the warm-up does not tell what was usual. It may be harmed by an action, though, as any other.
    """
    clock = _Clock(start_ns)
    counted = in_window(records, start_ns, warmup_s)
    first_s = done[0].began_s if done else math.inf
    end_s = max((clock.s(record.end_ns) for record in records), default=0.0)
    ended = by_class(record for record in counted if clock.s(record.end_ns) < first_s)
    harms = {name: harm_of(ended.get(name, ()), slo_of(name)) for name in by_class(records)}
    spans = {record.number: list(harmed_spans(record, harms[record.slo_class], start_ns)) for record in records}
    harmed = harmed_per_second(spans.values(), end_s)
    usual = usual_of(harmed_per_second((spans[record.number] for record in counted), end_s), first_s)
    actions = tuple(
        ActionReport(
            action=one,
            streams=_streams(records, one.began_s, clock),
            recovery=recovery(harmed, usual, one.began_s, following.began_s if following else None, end_s),
        )
        for one, following in zip_longest(done, done[1:])
    )
    touched = [
        _touched(record, run_id)
        for record in records
        if clock.s(record.end_ns) >= first_s and (spans[record.number] or (record.moves and record.moves.others))
    ]
    phases = tuple(
        _phase(counted if name == BEFORE else records, slo_of, name, from_s, until_s, clock)
        for name, from_s, until_s in _bounds(actions, warmup_s, end_s)
    )
    return DrillReport(
        harms=harms,
        phases=phases,
        actions=actions,
        undone=tuple(undone),
        touched=tuple(touched[:MAX_TOUCHED]),
        touched_count=len(touched),
        harmed_per_second=tuple(harmed),
        texts=texts,
        extra_usd=extra_usd(phases, usd_per_hour),
    )


def extra_usd(phases: Sequence[Phase], usd_per_hour: float | None) -> float | None:
    """The part of the price of the time until recovery that bought nothing, and would have before the actions.

    price x (1 - attainment during / attainment before); nothing where it was no lower.
    """
    named = {phase.name: phase for phase in phases}
    before, during = named.get(BEFORE), named.get(DURING)
    if usd_per_hour is None or before is None or during is None:
        return None
    if not before.met or during.met is None or not during.due:
        return None
    usd = usd_per_hour * (during.until_s - during.from_s) / S_PER_HOUR
    return usd * max(0.0, 1 - (during.met / during.due) / (before.met / before.due))


def extra_cost(usd: float) -> str:
    """`extra_usd` as a person reads it."""
    return f"${usd:.4g} of the price until recovery bought nothing, and would have before"


@dataclass(frozen=True, slots=True)
class _Clock:
    start_ns: int

    def s(self, at_ns: int) -> float:
        return (at_ns - self.start_ns) / 1e9

    def belongs(self, record: Record, phase: str, from_s: float, until_s: float) -> bool:
        due_s, end_s = self.s(record.due_ns), self.s(record.end_ns)
        if phase == BEFORE:
            return end_s <= until_s
        return due_s >= from_s if phase == AFTER else end_s > from_s and due_s < until_s


def _bounds(actions: Sequence[ActionReport], warmup_s: float, end_s: float) -> list[tuple[str, float, float]]:
    """Before the first action, until the last recovery, after it."""
    first_s = actions[0].action.began_s if actions else end_s
    bounds = [(BEFORE, min(warmup_s, first_s), first_s)]
    if not actions:
        return bounds
    last = actions[-1]
    healed_s = end_s if last.recovery.after_s is None else last.action.began_s + last.recovery.after_s
    bounds.append((DURING, first_s, healed_s))
    return bounds + ([(AFTER, healed_s, end_s)] if healed_s < end_s else [])


def _phase(records: Sequence[Record], slo_of: SloOf, name: str, from_s: float, until_s: float, clock: _Clock) -> Phase:
    due = [record for record in records if clock.belongs(record, name, from_s, until_s)]
    ok = [record for record in due if record.ok]
    judged = any(slo_of(record.slo_class) for record in due)
    gaps_ms = [
        record.gaps_ns[(ends_s >= from_s) & (ends_s < until_s)] / 1e6
        for record in records
        if (ends_s := (record.event_ns[1:] - clock.start_ns) / 1e9).size
    ]
    return Phase(
        name=name,
        from_s=from_s,
        until_s=until_s,
        due=len(due),
        outcomes=_outcomes(due),
        met=sum(meets(record, slo_of(record.slo_class)) for record in due) if judged else None,
        ttft=_latencies([record.ttft_ns / 1e6 for record in ok if record.ttft_ns is not None]),
        tpot=_latencies([record.tpot_ns / 1e6 for record in ok if record.tpot_ns is not None]),
        gap=_latencies(np.concatenate(gaps_ms).tolist() if gaps_ms else []),
    )


def _streams(records: Sequence[Record], action_s: float, clock: _Clock) -> Streams:
    open_ = [
        record for record in records if record.send_ns and clock.s(record.send_ns) <= action_s < clock.s(record.end_ns)
    ]
    lost = [record for record in open_ if not record.ok]
    longest_ms = [gap for record in open_ if (gap := _longest_gap_ms(record, action_s, clock)) is not None]
    return Streams(
        open=len(open_),
        completed=len(open_) - len(lost),
        cut=sum(record.outcome is Outcome.CUT for record in lost),
        lost=len(lost),
        outcomes=_outcomes(open_),
        moves=total_of(record.moves for record in open_),
        longest_gap=_latencies(longest_ms),
    )


def _longest_gap_ms(record: Record, from_s: float, clock: _Clock) -> float | None:
    """Of the gaps that end after `from_s`. The wait of a stream that broke without another token is none of them."""
    ends_s = (record.event_ns[1:] - clock.start_ns) / 1e9
    gaps_ns = record.gaps_ns[ends_s >= from_s]
    return float(gaps_ns.max()) / 1e6 if gaps_ns.size else None


def _touched(record: Record, run_id: str) -> Touched:
    gaps_ns = record.gaps_ns
    return Touched(
        number=record.number,
        request_id=f"{run_id}-{record.number}",
        outcome=record.outcome.value,
        detail=record.detail,
        moves=[f"{move.reason} {move.mode}" for move in record.moves.others] if record.moves is not None else None,
        ttft_ms=record.ttft_ns / 1e6 if record.ttft_ns is not None else None,
        longest_gap_ms=float(gaps_ns.max()) / 1e6 if gaps_ns.size else None,
    )


def _outcomes(records: Sequence[Record]) -> dict[str, int]:
    return dict(sorted(Counter(record.outcome.value for record in records).items()))


def _latencies(values_ms: Sequence[float]) -> Latencies:
    ordered = np.sort(np.array(values_ms, dtype=np.float64))

    def at(q: float) -> float | None:
        return quantile(ordered, q) if len(ordered) else None

    return Latencies(len(ordered), at(0.5), at(0.99), at(1.0))
