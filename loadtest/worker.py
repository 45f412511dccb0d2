"""One worker process: prepares its jobs, sends them from the common start on, then reads what came and reports."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from typing import TypeVar

from loadtest.audit import WorkerAudit
from loadtest.conversation import Conversations
from loadtest.driver import Counts, Driver, Planned
from loadtest.heartbeat import Heartbeat, Load, load_now, peak_rss_bytes
from loadtest.http.address import RequestWriter, parse_base_url, tls_context
from loadtest.http.connection import Flight
from loadtest.http.pool import Pool
from loadtest.reading import read_exchange
from loadtest.spool import Spool
from loadtest.types import Job, Limits, LoadTestError, Record, Target

T = TypeVar("T")

STOP = "stop"
RECORDS_PER_MESSAGE = 500
LISTEN_EVERY_S = 0.1
# Of each beat of 10 ms so much may go into putting finished flights away.
PUT_AWAY_NS = 300_000


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What a worker is to do."""

    run_id: str
    target: Target
    limits: Limits
    jobs: tuple[Job, ...]
    warm_connections: int
    stall_ms: float
    keep_text: bool


@dataclass(frozen=True, slots=True)
class ClockAsk:
    """What does your clock say? May be asked before the order and after Done."""


@dataclass(frozen=True, slots=True)
class ClockTold:
    """The worker's monotonic clock, in ns."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker waits for the start: an instant of the monotonic clock, in ns."""


@dataclass(frozen=True, slots=True)
class Progress:
    counts: Counts


@dataclass(frozen=True, slots=True)
class Records:
    records: list[Record]


@dataclass(frozen=True, slots=True)
class Done:
    audit: WorkerAudit


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker could not even begin."""

    why: str


Message = Ready | Progress | Records | Done | Failed | ClockTold


def worker_main(pipe: Pipe) -> None:
    """WorkOrder in; Ready out; start in; Progress, Records and Done out. STOP may come in at any time.

    Before and after, ClockAsk in and ClockTold out.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach all processes; the parent tells us what they mean
        signal.signal(number, signal.SIG_IGN)
    _allow_many_sockets()
    try:
        worker = Worker(pipe, _order(pipe))
        audit = run_on_loop(worker.run)
        for records in worker.read_records():
            pipe.send(Records(records))
        pipe.send(Done(audit))
        _tell_clock(pipe)
    except LoadTestError as error:
        pipe.send(Failed(str(error)))
    except (EOFError, ConnectionError):
        return  # the parent is gone, and with it whoever wanted to know
    finally:
        pipe.close()


def _allow_many_sockets() -> None:
    """Every stream takes one, and the usual limit of 1,024 files is a soft one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _order(pipe: Pipe) -> WorkOrder:
    """The next message that is not about the clock."""
    while isinstance(message := pipe.recv(), ClockAsk):
        pipe.send(ClockTold(time.monotonic_ns()))
    assert isinstance(message, WorkOrder)
    return message


def _tell_clock(pipe: Pipe) -> None:
    """Until the pipe is closed. A STOP may be among what comes: it crossed the end on its way."""
    while True:
        if isinstance(pipe.recv(), ClockAsk):
            pipe.send(ClockTold(time.monotonic_ns()))


def run_on_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Run on uvloop where it is installed, on asyncio's own loop elsewhere."""
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_await(main))


async def _await(main: Callable[[], Awaitable[T]]) -> T:
    return await main()


class Worker:
    """Holds what one run needs, from the order to the records."""

    def __init__(self, pipe: Pipe, order: WorkOrder) -> None:
        self._pipe = pipe
        self._order = order
        self._address = parse_base_url(order.target.base_url)
        self._tls: ssl.SSLContext | None = tls_context(order.target) if self._address.tls else None
        writer = RequestWriter(order.target, order.run_id)
        # The request holds the body; a second copy would double the memory of long prompts.
        planned = [Planned(replace(job, body=b""), b"" if job.continues else writer.request(job)) for job in order.jobs]
        self._jobs = {one.job.number: one.job for one in planned}
        self._writer = writer
        self._conversations = Conversations(order.jobs)
        self._spool = Spool()
        self._finished: deque[Flight] = deque()
        self._now_ns = time.monotonic_ns
        self._driver = Driver(
            planned, order.limits, now_ns=self._now_ns, ended=self._note_end, compose=self._continue_session
        )
        self._heartbeat = Heartbeat(self._now_ns, self._put_away, self._tell_progress)

    async def run(self) -> WorkerAudit:
        """Raises LoadTestError if there is nobody to talk to."""
        pool = Pool(
            self._address,
            self._tls,
            relay_port=self._order.target.relay_port,
            connect_timeout_s=self._order.limits.connect_timeout_s,
            max_answer_bytes=self._order.limits.answer_bytes,
            now_ns=self._now_ns,
            ended=self._driver.flight_ended,
        )
        await pool.warm(self._order.warm_connections)
        self._pipe.send(Ready())
        start_ns = await asyncio.to_thread(self._pipe.recv)
        if start_ns == STOP:
            self._driver.stop("stopped before the start")
            start_ns = self._now_ns()
        listening = asyncio.create_task(self._listen())
        with _no_garbage_collection():
            before = load_now(self._now_ns)
            self._heartbeat.start()
            await self._driver.run(pool, start_ns)
            self._heartbeat.stop()
            after = load_now(self._now_ns)
        listening.cancel()
        pool.close()
        self._tell_progress()
        return self._audit(pool, before, after)

    def read_records(self) -> Iterator[list[Record]]:
        """Understand everything that came, some hundred exchanges at a time."""
        while self._finished:
            self._spool.add(self._finished.popleft().freeze())
        batch = []
        for exchange in self._spool.drain():
            job = self._jobs[exchange.number]
            batch.append(read_exchange(exchange, job, stall_ms=self._order.stall_ms, keep_text=self._order.keep_text))
            if len(batch) == RECORDS_PER_MESSAGE:
                yield batch
                batch = []
        yield batch

    def _note_end(self, flight: Flight) -> None:
        self._finished.append(flight)
        self._conversations.ended(self._jobs[flight.number], flight.read_ns, flight.pieces)

    def _continue_session(self, job: Job) -> bytes:
        return self._writer.request(replace(job, body=self._conversations.body(job)))

    async def _listen(self) -> None:
        """Until the parent says stop, or is gone. A loop that watched the pipe would make it non-blocking."""
        while not self._pipe.poll():
            await asyncio.sleep(LISTEN_EVERY_S)
        self._driver.stop("the test was stopped")

    def _put_away(self) -> None:
        """Pack finished flights while there is time: thousands may end at once, and the next beat is not far."""
        until_ns = self._now_ns() + PUT_AWAY_NS
        while self._finished and self._now_ns() < until_ns:
            self._spool.add(self._finished.popleft().freeze())
        while self._now_ns() < until_ns and self._conversations.hear_one():
            pass

    def _tell_progress(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_listen` learns of it too, and stops
            self._pipe.send(Progress(replace(self._driver.counts)))

    def _audit(self, pool: Pool, before: Load, after: Load) -> WorkerAudit:
        counts, driver, beat = pool.counts, self._driver.counts, self._heartbeat
        wall_ns = after.at_ns - before.at_ns
        return WorkerAudit(
            wall_s=wall_ns / 1e9,
            cpu_s=after.cpu_s - before.cpu_s,
            cpu_wait_s=after.cpu_wait_s - before.cpu_wait_s,
            peak_cpu_share=beat.peak_cpu_share,
            beats=beat.beats,
            stall_p99_ms=beat.stall_ms(0.99),
            stall_max_ms=beat.stall_ms(1.0),
            sent=driver.sent,
            reused=counts.reused,
            resent=counts.resent,
            opened=counts.opened,
            failed_to_open=counts.failed_to_open,
            lacked_sockets=counts.lacked_sockets,
            peak_in_flight=driver.peak_in_flight,
            peak_rss_bytes=peak_rss_bytes(),
            clock_step_ms=(after.wall_clock_ns - before.wall_clock_ns - wall_ns) / 1e6,
            uvloop="uvloop" in sys.modules,
            spool_error=self._spool.error,
        )


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection would stop the loop for milliseconds; what a run makes holds no cycles worth collecting."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
