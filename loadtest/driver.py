"""Sends every job when it is due, on one event loop: the part of a worker that runs while time counts."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.http.connection import Flight, NowNs
from loadtest.http.pool import Pool
from loadtest.overdue import too_late, too_much
from loadtest.timer import Timer
from loadtest.types import Ending, Job, Limits

NS_PER_S = 1_000_000_000
# A timer that is this close costs more to arm than to wait for.
ALMOST_DUE_NS = 20_000
# Between two looks at the sockets. Writing takes longer than reading, and what waits to be read gets a wrong instant.
SENDS_AT_ONCE = 32
# A flood of answers may grow by about a gigabyte a second; each look at thousands of flights takes some 0.1 ms.
LOOK_EVERY_S = 0.25


class Planned(NamedTuple):
    """A job with its request; without one where it takes what was said in the session before."""

    job: Job
    request: bytes


class _Due(NamedTuple):
    at_ns: int
    order: int
    planned: Planned


@dataclass(slots=True)
class Counts:
    """How far the run is."""

    due: int = 0
    sent: int = 0
    ended: int = 0
    failed: int = 0  # as far as the socket can tell
    in_flight: int = 0
    peak_in_flight: int = 0


class Driver:
    """Open loop: jobs with a due time. Closed loop: jobs without one, as slots allow. Both: later turns of sessions."""

    def __init__(
        self,
        planned: Sequence[Planned],
        limits: Limits,
        *,
        now_ns: NowNs,
        ended: Callable[[Flight], None],
        compose: Callable[[Job], bytes],
    ) -> None:
        """`ended` is told of each flight; `compose` makes the request of a job that came without one."""
        self._limits = limits
        self._slots = limits.concurrency
        self._now_ns = now_ns
        self._tell_ended = ended
        self._compose = compose
        self._timer = Timer()
        self._order = 0
        self._due: list[_Due] = []  # a heap
        self._held: deque[_Due] = deque()  # due, but no slot is free
        self._unheld: deque[tuple[_Due, int]] = deque()  # a slot came free after so many ns; to be sent at once
        self._will_send = False
        self._free: deque[Planned] = deque()  # to be sent whenever a slot is free
        self._later_turns: dict[int, deque[Planned]] = {}
        self._flights: dict[int, tuple[Planned, Flight]] = {}
        self._scheduled = self._sort(planned)
        self._start_ns = 0
        self._last_send_ns: int | None = None
        self._stopping = False
        self._done = asyncio.Event()
        self._pool: Pool | None = None
        self.counts = Counts()

    def _sort(self, planned: Sequence[Planned]) -> list[Planned]:
        """Sort out first turns, whether scheduled or not, and later ones. Returns the scheduled."""
        by_turn = sorted(planned, key=lambda one: (one.job.session, one.job.turn))
        first_turns = []
        for _, session in itertools.groupby(by_turn, key=lambda one: one.job.session):
            first, *later = session
            first_turns.append(first)
            if later:
                self._later_turns[first.job.session] = deque(later)
        first_turns.sort(key=lambda one: one.job.number)
        self._free.extend(one for one in first_turns if one.job.due_s is None)
        return [one for one in first_turns if one.job.due_s is not None]

    async def run(self, pool: Pool, start_ns: int) -> None:
        """Returns when every flight has ended, at the latest when the limits say so."""
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        self._pool = pool
        self._start_ns = start_ns
        if self._limits.stop_after_s is not None:
            self._last_send_ns = start_ns + round(self._limits.stop_after_s * NS_PER_S)
        for one in self._scheduled:
            self._push(start_ns + round((one.job.due_s or 0.0) * NS_PER_S), one)
        for _ in range(self._slots if self._slots is not None else len(self._free)):
            self._push_free(start_ns)
        loop.add_reader(self._timer.fd, self._on_timer)
        sweep = loop.create_task(self._sweep())
        if self._due:
            self._timer.arm(self._due[0].at_ns)
        try:
            if self._due:
                await self._done.wait()
        finally:
            sweep.cancel()
            loop.remove_reader(self._timer.fd)
            self._timer.close()

    def stop(self, why: str) -> None:
        """Send nothing more, and end what runs."""
        if self._stopping:
            return
        self._stopping = True
        self._send_no_more(why)
        for _, flight in list(self._flights.values()):
            self._give_up(flight, Ending.STOPPED, why)
        self._finish_if_idle()

    def _send_no_more(self, why: str) -> None:
        """What was due before now is unsent; what would have come later is not part of the run."""
        now_ns = self._now_ns()
        overdue = [due for due in self._due if due.at_ns <= now_ns]
        self.counts.due += len(overdue)
        overdue += [*self._held, *(due for due, _ in self._unheld)]
        self._held.clear()
        self._unheld.clear()
        self._due.clear()
        self._free.clear()
        self._later_turns.clear()
        for due in overdue:
            flight = Flight(due.planned.job.number, b"", due.at_ns)
            flight.ending, flight.detail, flight.end_ns = Ending.UNSENT, why, now_ns
            self._tell_ended(flight)

    def _push(self, at_ns: int, planned: Planned) -> None:
        if self._last_send_ns is not None and at_ns > self._last_send_ns:
            self._later_turns.pop(planned.job.session, None)
            return  # not part of the run, and no later turn of its session either
        self._order += 1
        heapq.heappush(self._due, _Due(at_ns, self._order, planned))

    def _push_free(self, at_ns: int) -> None:
        if self._free:
            self._push(at_ns, self._free.popleft())

    def _on_timer(self) -> None:
        self._timer.clear()
        self._send_due()

    def _send_due(self) -> None:
        """Send what is due, some requests at a time; arm the timer for what comes next."""
        self._will_send = False
        due = self._due
        for _ in range(SENDS_AT_ONCE):
            if self._unheld:
                self._send(*self._unheld.popleft())
            elif due and due[0].at_ns - ALMOST_DUE_NS <= self._now_ns():
                self._send_or_hold(heapq.heappop(due))
            else:
                break
        else:
            self._send_soon()
            return
        if due:
            self._timer.arm(due[0].at_ns)
        self._finish_if_idle()

    def _send_soon(self) -> None:
        """After what has come was read: many streams may end at one instant, and the last must not wait for sends."""
        if not self._will_send:
            self._will_send = True
            asyncio.get_running_loop().call_soon(self._send_due)

    def _send_or_hold(self, due: _Due) -> None:
        self.counts.due += 1
        if self._slots is not None and self.counts.in_flight >= self._slots:
            self._held.append(due)
        else:
            self._send(due, held_ns=0)

    def _send(self, due: _Due, held_ns: int) -> None:
        assert self._pool is not None
        counts = self.counts
        counts.sent += 1
        counts.in_flight += 1
        counts.peak_in_flight = max(counts.peak_in_flight, counts.in_flight)
        job = due.planned.job
        request = due.planned.request or self._compose(job)
        flight = Flight(job.number, request, due.at_ns, held_ns)
        self._flights[job.number] = due.planned, flight
        self._pool.send(flight)

    def flight_ended(self, flight: Flight) -> None:
        """The pool's word that a flight is over: its slot and its session are free for what comes next."""
        planned, _ = self._flights.pop(flight.number)
        counts = self.counts
        counts.in_flight -= 1
        counts.ended += 1
        counts.failed += flight.ending is not Ending.COMPLETE
        self._tell_ended(flight)
        if not self._stopping:
            self._go_on(planned.job, flight.end_ns)
        self._finish_if_idle()

    def _go_on(self, job: Job, end_ns: int) -> None:
        turns = self._later_turns.get(job.session)
        if turns:
            following = turns.popleft()
            if not turns:
                del self._later_turns[job.session]
            due_s, think_ns = following.job.due_s, round(following.job.think_s * NS_PER_S)
            not_before_ns = self._start_ns + round(due_s * NS_PER_S) if due_s is not None else 0
            self._push(max(end_ns + think_ns, not_before_ns), following)
        elif job.due_s is None and self._slots is not None:
            self._push_free(end_ns)
        if self._held:
            due = self._held.popleft()
            self._unheld.append((due, max(0, end_ns - due.at_ns)))
        if self._due or self._unheld:
            self._send_soon()

    def _finish_if_idle(self) -> None:
        if not (self._flights or self._due or self._held or self._unheld):
            self._done.set()

    def _has_more(self) -> bool:
        """Whether there will be more to send: a closed loop and its sessions wait for what runs."""
        return bool(self._due or self._held or self._unheld or self._free or self._later_turns)

    async def _sweep(self) -> None:
        """Look for flights that must be ended, and for the end of the time to send and to drain."""
        limits = self._limits
        shortest_s = min(filter(None, (limits.timeout_s, limits.idle_timeout_s, limits.drain_s)))
        drain_from_ns: int | None = None
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, max(0.01, shortest_s / 4)))
            now_ns = self._now_ns()
            self._end_overdue(now_ns)
            if self._last_send_ns is not None and now_ns > self._last_send_ns:
                self._send_no_more("the time to send was over")
                self._finish_if_idle()
            if limits.drain_s is None or self._has_more():
                drain_from_ns = None
            elif drain_from_ns is None:
                drain_from_ns = now_ns
            elif now_ns - drain_from_ns > limits.drain_s * NS_PER_S:
                self.stop(f"still running {limits.drain_s:g} s after the last request was sent")

    def _end_overdue(self, now_ns: int) -> None:
        flights = [flight for _, flight in self._flights.values()]
        for flight, ending, why in (*too_late(flights, self._limits, now_ns), *too_much(flights, self._limits)):
            if flight.ending is None:
                self._give_up(flight, ending, why)

    def _give_up(self, flight: Flight, ending: Ending, why: str) -> None:
        assert self._pool is not None
        self._pool.give_up(flight, ending, why)
