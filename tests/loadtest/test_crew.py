"""Workers behind their seam: local processes, workers that call in over TCP with a clock of their own, tasks of Ray."""

from __future__ import annotations

import dataclasses
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from loadtest import runner
from loadtest.audit import Audit, faults
from loadtest.crew import Hand, Hiring, by_clock
from loadtest.jobs import body, open_loop
from loadtest.moves import Moves, ToldMove
from loadtest.options import parse_workers
from loadtest.ray_workers import RayCrew
from loadtest.remote import Doorway, RemoteChild
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthConfig, TruthServer
from loadtest.types import Limits, LoadTestError, Target
from loadtest.worker import ClockTold, Records, worker_main
from tests.loadtest.builders import record
from tests.loadtest.test_results import WORKER

TTFT_MS, GAP_MS, TOKENS, REQUESTS = 30.0, 5.0, 4, 40
AHEAD_NS = 7_000_000_000_000  # a machine that was started two hours earlier


class Skewed:
    """What a worker says and hears as if its clock were far ahead: timers keep to the real one."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def recv(self) -> Any:
        message = self._pipe.recv()
        return message - AHEAD_NS if isinstance(message, int) else message

    def send(self, message: Any) -> None:
        if isinstance(message, ClockTold):
            message = ClockTold(message.at_ns + AHEAD_NS)
        elif isinstance(message, Records):
            message = Records([by_clock(one, -AHEAD_NS) for one in message.records])
        self._pipe.send(message)

    def poll(self, timeout_s: float = 0.0) -> bool:
        return bool(self._pipe.poll(timeout_s))

    def close(self) -> None:
        self._pipe.close()


def worker_with_another_clock(address: tuple[str, int], key: bytes) -> None:
    worker_main(Skewed(Client(address, authkey=key)))  # type: ignore[arg-type]


@contextmanager
def calling(spec: RunSpec) -> Iterator[Hiring]:
    """As `hiring`, with workers that are other machines as far as the runner can tell."""
    doorway, spawn = Doorway("127.0.0.1"), multiprocessing.get_context("spawn")

    def hire(count: int) -> Sequence[Hand]:
        found = []
        for _ in range(count):
            process = spawn.Process(target=worker_with_another_clock, args=(doorway.address, doorway.key))
            process.start()
            found.append(RemoteChild(doorway.next_caller(), partial(end, process)))
        return found

    def end(process: multiprocessing.process.BaseProcess) -> None:
        process.join(5)
        if process.is_alive():
            process.kill()

    try:
        yield Hiring(spec.workers, hire)
    finally:
        doorway.close()


def load(truth: TruthServer, **changes: object) -> RunSpec:
    prompt = body("/v1/chat/completions", "truth", "a", TOKENS, stream=True)
    jobs = open_loop([prompt] * REQUESTS, [0.02 * n for n in range(REQUESTS)])
    spec = RunSpec(Target(truth.base_url), jobs, Limits(timeout_s=20.0), workers=2)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def looks_right(result: RunResult, *, within_ms: float) -> None:
    """Every request once, at its due time by our clock, with the latency that the server has."""
    assert [one.number for one in sorted(result.records, key=lambda one: one.number)] == list(range(REQUESTS))
    assert not result.died and len(result.workers) == 2 and sum(one.sent for one in result.workers) == REQUESTS
    for one in result.records:
        assert one.ok and one.due_ns == result.start_ns + 20_000_000 * one.number
        assert one.ttft_ns is not None and TTFT_MS <= one.ttft_ns / 1e6 < TTFT_MS + within_ms
        assert (one.event_ns[1:] >= one.event_ns[:-1]).all() and one.event_ns[0] == one.first_ns


@pytest.fixture
def truth() -> Iterator[TruthServer]:
    with TruthServer(TruthConfig(ttft_ms=TTFT_MS, gap_ms=GAP_MS, tokens=TOKENS)) as server:
        yield server


def test_local_workers(truth: TruthServer) -> None:
    result = run(load(truth))
    looks_right(result, within_ms=100.0)
    assert all(one.clock_offset_ms == one.clock_bound_ms == 0 for one in result.workers)


@pytest.mark.slow
def test_workers_elsewhere_with_another_clock(truth: TruthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "hiring", calling)
    result = run(load(truth, ray_address="elsewhere"))
    looks_right(result, within_ms=100.0)
    for one in result.workers:
        assert abs(one.clock_offset_ms - AHEAD_NS / 1e6) <= one.clock_bound_ms + 1e-6 and 0 < one.clock_bound_ms < 50


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_as_tasks_of_a_ray_cluster(truth: TruthServer) -> None:
    """A cluster of two nodes, in a process of its own: Ray is global to one."""
    code = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "c = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})\n"
        "c.add_node(num_cpus=1); c.wait_for_nodes(); print(c.address, flush=True); sys.stdin.read(); c.shutdown()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        try:
            address = cluster.stdout.readline().strip()
            count, where = parse_workers(f"ray:{address}")
            result = run(load(truth, workers=count, ray_address=where))
            looks_right(result, within_ms=300.0)
            assert all(one.clock_bound_ms < 20 for one in result.workers)
        finally:
            cluster.stdin.close()
            cluster.wait(timeout=60)


def test_no_cluster_is_an_error_that_says_where(truth: TruthServer) -> None:
    with pytest.raises(LoadTestError, match=r"no Ray cluster answers at 127.0.0.1:1\b"):
        run(load(truth, ray_address="127.0.0.1:1"))


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("ray://head:abc", "abc"),
        ("ray:head:abc", "abc"),
        ("ray:10.0.0.1:99999", "99999|65535"),
        ("ray://head:-1", "-1"),
        ("ray://[::1", "IPv6"),
        ("ray://:10001", "no host"),
        ("ray::6379", "no host"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_refused(flag: str, why: str) -> None:
    _, address = parse_workers(flag)
    assert address is not None
    with pytest.raises(LoadTestError, match=rf"^--workers: .*({why}).*; write ray://HOST:10001"), RayCrew(address):
        pass


def test_a_name_that_no_host_can_have_does_not_answer() -> None:
    with pytest.raises(LoadTestError, match="no Ray cluster answers"), RayCrew(f"ray://{'a' * 70}:10001"):
        pass


def test_who_has_no_key_is_no_worker() -> None:
    doorway = Doorway("127.0.0.1")
    try:
        with pytest.raises(LoadTestError, match="did not call"):
            doorway.next_caller(within_s=0.2)
    finally:
        doorway.close()
    doorway = Doorway("127.0.0.1")
    intruder = multiprocessing.get_context("spawn").Process(target=_intrude, args=(doorway.address,))
    intruder.start()
    try:
        with pytest.raises(LoadTestError, match="no worker of ours"):
            doorway.next_caller(within_s=20)
    finally:
        intruder.join(10)
        doorway.close()


def _intrude(address: tuple[str, int]) -> None:
    try:
        Client(address, authkey=b"guessed")
    except (multiprocessing.AuthenticationError, EOFError, OSError):
        return


def test_times_by_our_clock_and_what_never_happened_stays_so() -> None:
    theirs = record([1_000, 1_050], due_ms=900)
    ours = by_clock(theirs, 500_000_000)
    assert (theirs.due_ns - ours.due_ns, theirs.first_ns - ours.first_ns) == (500_000_000, 500_000_000)
    assert (ours.event_ns == theirs.event_ns - 500_000_000).all() and ours.ttft_ns == theirs.ttft_ns
    unsent = dataclasses.replace(theirs, send_ns=0, first_ns=0)
    assert (by_clock(unsent, 5).send_ns, by_clock(unsent, 5).first_ns) == (0, 0)
    assert by_clock(theirs, 0) is theirs
    moved = dataclasses.replace(theirs, moves=Moves(1, 0, (5.0,), 0, (ToldMove(1_020_000_000, "kv", "drain", 2, 5.0),)))
    ours = by_clock(moved, 500_000_000)
    assert ours.moves is not None and ours.moves.told[0].told_ns == 520_000_000
    assert ours.first_ns < ours.moves.told[0].told_ns < ours.last_ns, "a move is told among the events of its stream"


def test_a_clock_that_is_not_known_well_enough_spoils_the_run() -> None:
    vague = dataclasses.replace(WORKER, clock_bound_ms=40.0)
    audit = Audit((vague,), due=10, sent=10, lag_p50_ms=0, lag_p99_ms=0, lag_max_ms=0, offered_rps=1, delivered_rps=1)
    (fault,) = faults(audit, ttft_ms=200.0, excused=False, died=())
    assert "known to 40.0 ms only, 10.0 will do" in fault
    assert faults(audit, ttft_ms=1000.0, excused=False, died=()) == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4", (4, None)),
        ("ray:auto", (0, "auto")),
        ("ray://head:10001", (0, "ray://head:10001")),
        ("ray://head:10001?workers=8", (8, "ray://head:10001")),
        ("ray:10.0.0.1:6379?workers=2", (2, "10.0.0.1:6379")),
    ],
)
def test_where_workers_may_be(text: str, found: tuple[int, str | None]) -> None:
    assert parse_workers(text) == found


@pytest.mark.parametrize("text", ["0", "-1", "many", "ray:", "ray://", "ray:auto?workers=0", "ray:auto?nodes=2"])
def test_where_they_may_not_be(text: str) -> None:
    with pytest.raises(LoadTestError, match="--workers"):
        parse_workers(text)
