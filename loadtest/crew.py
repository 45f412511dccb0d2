"""The workers of one run, here or on other machines: hired, started at one instant, heard until they are done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any, Protocol

from loadtest.audit import WorkerAudit
from loadtest.clock_offset import HERE, ClockOffset, Exchange, offset_of, over_run
from loadtest.driver import Counts
from loadtest.moves import shifted
from loadtest.processes import Child
from loadtest.spec import RunSpec
from loadtest.types import Interrupted, LoadTestError, Record
from loadtest.work_orders import orders_of
from loadtest.worker import STOP, ClockAsk, Done, Failed, Message, Progress, Ready, Records, worker_main

READY_WITHIN_S = 60.0
# Workers tell their progress every second; reading a long run may take a while between two messages.
SILENT_AT_MOST_S = 120.0
LOOK_EVERY_S = 0.2
CLOCK_EXCHANGES, CLOCK_WITHIN_S = 16, 10.0
NS_PER_MS = 1e6


class Interrupts(Protocol):
    """`count` of Ctrl-C so far."""

    count: int


class Hand(Protocol):
    """A worker, wherever it is: `processes.Child`, `remote.RemoteChild`."""

    pipe: Pipe

    @property
    def remote(self) -> bool: ...

    def send(self, message: Any) -> bool: ...

    def recv(self) -> Any: ...

    def how_it_ended(self) -> str: ...

    def kill(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Hiring:
    """How many workers there may be, and how to get some of them."""

    count: int
    hire: Callable[[int], Sequence[Hand]]


@contextmanager
def hiring(spec: RunSpec) -> Iterator[Hiring]:
    if spec.ray_address is None:
        yield Hiring(max(1, spec.workers), lambda count: [Child(worker_main) for _ in range(count)])
        return
    from loadtest.ray_workers import RayCrew  # importing Ray takes a second, and only they need it

    with RayCrew(spec.ray_address) as crew:
        yield Hiring(spec.workers or crew.nodes(), crew.hire)


@dataclass(slots=True)
class _Member:
    child: Hand
    heard_s: float
    counts: Counts = field(default_factory=Counts)
    clock: ClockOffset = HERE
    clock_after: ClockOffset | None = None
    audit: WorkerAudit | None = None


class Crew:
    """The workers of one run."""

    def __init__(self, spec: RunSpec, hiring: Hiring) -> None:
        self._spec, self._hiring = spec, hiring
        self.run_id = uuid.uuid4().hex[:12]
        self.records: list[Record] = []
        self.died: list[str] = []
        self._members: list[_Member] = []

    def __enter__(self) -> Crew:
        orders = orders_of(self._spec, self.run_id, self._hiring.count)
        self._members = [_Member(child, time.perf_counter()) for child in self._hiring.hire(len(orders))]
        for member, order in zip(self._members, orders, strict=True):
            member.clock = _clock_of(member.child)
            member.child.send(order)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.child.stop()

    def get_ready(self, interrupts: Interrupts) -> None:
        until_s = time.perf_counter() + READY_WITHIN_S
        waiting = list(self._members)
        while waiting:
            for member in self._heard(waiting):
                message = self._receive(member)
                if isinstance(message, Failed):
                    raise LoadTestError(message.why)
                if not isinstance(message, Ready):
                    raise LoadTestError(f"a worker died while it got ready: {', '.join(self.died)}")
                waiting.remove(member)
            if interrupts.count:
                raise Interrupted("interrupted before the start: nothing was sent")
            if time.perf_counter() > until_s:
                raise LoadTestError(f"a worker was not ready within {READY_WITHIN_S:.0f} s")

    def start(self, start_ns: int) -> None:
        for member in self._members:
            member.child.send(start_ns + member.clock.offset_ns)

    def gather(self, interrupts: Interrupts, on_progress: Callable[[Counts], None] | None) -> None:
        """Until every worker is done or dead."""
        told_to_stop = False
        working = list(self._members)
        while working:
            if interrupts.count and not told_to_stop:
                told_to_stop = True
                self._say_stop(working)
            for member in self._heard(working):
                message = self._receive(member)
                if isinstance(message, Progress):
                    member.counts = message.counts
                    if on_progress is not None:
                        on_progress(_sum(member.counts for member in self._members))
                elif isinstance(message, Records):
                    self.records += [by_clock(record, member.clock.offset_ns) for record in message.records]
                else:
                    if isinstance(message, Done):
                        member.audit = message.audit
                    working.remove(member)
            working = [member for member in working if not self._is_lost(member)]

    def look_at_clocks_again(self) -> None:
        """What they drifted apart during the run is part of what is not known."""
        for member in self._members:
            if member.audit is not None and member.child.remote:
                with suppress(LoadTestError):  # it is gone already: the first look must do
                    member.clock_after = _clock_of(member.child)

    def audits(self) -> Iterator[WorkerAudit]:
        """Of the workers that came to their end."""
        for member in self._members:
            if member.audit is not None:
                clock = over_run(member.clock, member.clock_after)
                offset_ms, bound_ms = clock.offset_ns / NS_PER_MS, clock.bound_ns / NS_PER_MS
                yield replace(member.audit, clock_offset_ms=offset_ms, clock_bound_ms=bound_ms)

    def _say_stop(self, members: Iterable[_Member]) -> None:
        for member in members:
            member.child.send(STOP)

    def _heard(self, members: list[_Member]) -> list[_Member]:
        readable = wait([member.child.pipe for member in members], timeout=LOOK_EVERY_S)
        return [member for member in members if member.child.pipe in readable]

    def _receive(self, member: _Member) -> Message | None:
        member.heard_s = time.perf_counter()
        try:
            message: Message = member.child.recv()
        except EOFError:
            self.died.append(member.child.how_it_ended())
            return None
        return message

    def _is_lost(self, member: _Member) -> bool:
        silent_s = time.perf_counter() - member.heard_s
        if silent_s <= SILENT_AT_MOST_S:
            return False
        member.child.kill()
        self.died.append(f"it said nothing for {silent_s:.0f} s")
        return True


def _clock_of(child: Hand) -> ClockOffset:
    """Raises LoadTestError if it does not answer."""
    if not child.remote:
        return HERE
    exchanges = []
    for _ in range(CLOCK_EXCHANGES):
        sent_ns = time.monotonic_ns()
        if not child.send(ClockAsk()) or not child.pipe.poll(CLOCK_WITHIN_S):
            raise LoadTestError(f"a worker did not tell its clock within {CLOCK_WITHIN_S:.0f} s")
        try:
            told = child.recv()
        except EOFError:
            raise LoadTestError("a worker was gone before its order came") from None
        exchanges.append(Exchange(sent_ns, told.at_ns, time.monotonic_ns()))
    return offset_of(exchanges)


def by_clock(record: Record, offset_ns: int) -> Record:
    """A record of another machine, by our clock. Zero stands for what never happened."""
    if not offset_ns:
        return record
    due_ns, send_ns, first_ns, last_ns, end_ns = (
        instant - offset_ns if instant else 0
        for instant in (record.due_ns, record.send_ns, record.first_ns, record.last_ns, record.end_ns)
    )
    return replace(
        record,
        due_ns=due_ns,
        send_ns=send_ns,
        first_ns=first_ns,
        last_ns=last_ns,
        end_ns=end_ns,
        event_ns=record.event_ns - offset_ns,
        moves=record.moves and shifted(record.moves, -offset_ns),
    )


def _sum(all_counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for counts in all_counts:
        total.due += counts.due
        total.sent += counts.sent
        total.ended += counts.ended
        total.failed += counts.failed
        total.in_flight += counts.in_flight
        total.peak_in_flight += counts.peak_in_flight
    return total
