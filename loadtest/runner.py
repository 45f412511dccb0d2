"""Runs a load test: splits the jobs over worker processes, starts them at one instant, gathers what they saw."""

from __future__ import annotations

import math
import signal
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from types import FrameType

from loadtest.audit import WorkerAudit
from loadtest.driver import Counts
from loadtest.processes import Child
from loadtest.spec import RunResult, RunSpec
from loadtest.types import Job, LoadTestError, Record
from loadtest.worker import STOP, Done, Failed, Message, Progress, Ready, Records, WorkOrder, worker_main

READY_WITHIN_S = 60.0
# From the word to the first due time: it has to reach every worker.
START_IN_NS = 50_000_000
# Workers tell their progress every second; reading a long run may take a while between two messages.
SILENT_AT_MOST_S = 120.0
LOOK_EVERY_S = 0.2
# For requests that come one after the other. Those that are due at once need a connection each anyway.
MAX_WARM_CONNECTIONS = 512


def run(
    spec: RunSpec,
    on_progress: Callable[[Counts], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> RunResult:
    """Run it to its end. SIGINT ends it early: the result then holds what was seen so far.

    `on_start` is told the instant from which due times count, shortly before it comes; it must not take long.

    Raises:
        LoadTestError: when it could not start.
    """
    if not spec.jobs:
        raise LoadTestError("there is no request to send")
    with _Interrupts() as interrupts, _Crew(spec) as crew:
        crew.get_ready(interrupts)
        start_ns = time.monotonic_ns() + START_IN_NS
        started_at_s = (time.time_ns() + START_IN_NS) / 1e9
        crew.start(start_ns)
        if on_start is not None:
            on_start(start_ns)
        crew.gather(interrupts, on_progress)
        return RunResult(
            spec=spec,
            run_id=crew.run_id,
            start_ns=start_ns,
            started_at_s=started_at_s,
            records=tuple(sorted(crew.records, key=lambda record: (record.due_ns, record.number))),
            workers=tuple(crew.audits),
            interrupted=bool(interrupts.count),
            died=tuple(crew.died),
        )


def share_of(session: int, workers: int) -> int:
    """The worker that has this session: a conversation stays in one place, whatever the seed."""
    return zlib.crc32(session.to_bytes(8, "little", signed=True)) % workers


class _Interrupts:
    """Counts Ctrl-C while a run goes on: the first asks for a stop, the second ends everything at once."""

    def __init__(self) -> None:
        self.count = 0
        self._before: signal._HANDLER = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


@dataclass(slots=True)
class _Member:
    child: Child
    heard_s: float
    counts: Counts = field(default_factory=Counts)


class _Crew:
    """The worker processes of one run."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self.run_id = uuid.uuid4().hex[:12]
        self.records: list[Record] = []
        self.audits: list[WorkerAudit] = []
        self.died: list[str] = []
        self._members: list[_Member] = []

    def __enter__(self) -> _Crew:
        orders = _orders(self._spec, self.run_id)
        self._members = [_Member(Child(worker_main), time.perf_counter()) for _ in orders]
        for member, order in zip(self._members, orders, strict=True):
            member.child.send(order)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.child.stop()

    def get_ready(self, interrupts: _Interrupts) -> None:
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
                raise LoadTestError("interrupted before the start")
            if time.perf_counter() > until_s:
                raise LoadTestError(f"a worker was not ready within {READY_WITHIN_S:.0f} s")

    def start(self, start_ns: int) -> None:
        for member in self._members:
            member.child.send(start_ns)

    def gather(self, interrupts: _Interrupts, on_progress: Callable[[Counts], None] | None) -> None:
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
                    self.records += message.records
                else:
                    if isinstance(message, Done):
                        self.audits.append(message.audit)
                    working.remove(member)
            working = [member for member in working if not self._is_lost(member)]

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


def _orders(spec: RunSpec, run_id: str) -> list[WorkOrder]:
    """One order per worker that has any job. A concurrency limit is shared out as evenly as it goes."""
    shares: list[list[Job]] = [[] for _ in range(max(1, spec.workers))]
    for job in spec.jobs:
        shares[share_of(job.session, len(shares))].append(job)
    shares = [share for share in shares if share]
    concurrency = spec.limits.concurrency
    if concurrency is not None and concurrency < len(shares):
        raise LoadTestError(f"{len(shares)} workers cannot share a concurrency of {concurrency}: take fewer workers")
    warm = _warm_connections(spec)
    return [
        WorkOrder(
            run_id=run_id,
            target=spec.target,
            limits=spec.limits if concurrency is None else replace(spec.limits, concurrency=part),
            jobs=tuple(share),
            warm_connections=math.ceil(warm / len(shares)),
            stall_ms=spec.stall_ms,
            keep_text=spec.keep_text,
            spool_folder=spec.spool_folder,
        )
        for share, part in zip(shares, _parts(concurrency or 0, len(shares)), strict=True)
    ]


def _parts(whole: int, count: int) -> list[int]:
    return [whole // count + (number < whole % count) for number in range(count)]


def _warm_connections(spec: RunSpec) -> int:
    """At least one, so that an endpoint nobody listens on is found before the start."""
    if spec.warm_connections is not None:
        return max(1, spec.warm_connections)
    slots = spec.limits.concurrency if spec.limits.concurrency is not None else len(spec.jobs)
    at_once = sum(1 for job in spec.jobs if job.turn == 0 and not job.due_s)
    soon = sum(1 for job in spec.jobs if job.turn == 0 and job.due_s and job.due_s < 1.0)
    return max(1, min(slots, at_once + min(soon, MAX_WARM_CONNECTIONS)))


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
