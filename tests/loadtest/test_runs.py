"""Whole runs over real sockets, against a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from loadtest.calibrate import compare
from loadtest.driver import Counts
from loadtest.http.address import parse_base_url
from loadtest.http.connection import Flight
from loadtest.http.pool import Pool, PoolCounts
from loadtest.jobs import body, closed_loop, open_loop, sessions
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthServer
from loadtest.types import Flag, Job, Limits, LoadTestError, Outcome, Target
from loadtest.work_orders import share_of
from tests.loadtest.conftest import QUICK

CHAT = "/v1/chat/completions"
BODY = body(CHAT, "truth", "one two three", 8, stream=True)


def go(truth: TruthServer, jobs: Sequence[Job], limits: Limits | None = None, **spec: Any) -> RunResult:
    limits = limits or Limits(concurrency=10, timeout_s=20)
    return run(RunSpec(Target(truth.base_url), jobs, limits, keep_text=True, **spec))


def outcomes(result: RunResult) -> dict[Outcome, int]:
    return dict(Counter(record.outcome for record in result.records))


def test_an_open_loop_sends_each_request_at_its_time(truth: TruthServer) -> None:
    due_s = [0.0, 0.05, 0.05, 0.2]
    result = go(truth, open_loop([BODY] * 4, due_s), Limits())
    assert outcomes(result) == {Outcome.OK: 4}
    assert [(record.due_ns - result.start_ns) / 1e9 for record in result.records] == pytest.approx(due_s, abs=1e-6)
    for record in result.records:
        assert record.lag_ns is not None and -1e6 < record.lag_ns < 200e6
        assert record.due_ns - 1e6 < record.send_ns < record.first_ns < record.last_ns <= record.end_ns
        assert (record.output_tokens, record.prompt_tokens, len(record.event_ns)) == (8, 3, 8)
        assert record.text is not None and len(record.text.split()) == 8


def test_the_client_says_what_the_server_did(truth: TruthServer) -> None:
    result = go(truth, closed_loop([BODY] * 40))
    log = truth.take_log()
    written = {one.response_id: one for one in log.written}
    assert len(written) == 40
    for record in result.records:
        one = written[record.response_id]
        assert record.send_ns < one.received_ns < one.token_write_ns[0] < record.first_ns
        # Each event came after it was written, and before the next but one: they are the same events.
        assert all(came > wrote for came, wrote in zip(record.event_ns, one.token_write_ns, strict=True))
    point = compare("40", result, log)
    assert point.completed == point.requests == 40 and point.error["ttft"].mean_ms > 0


def test_a_closed_loop_never_has_more_in_flight_than_slots(truth: TruthServer) -> None:
    result = go(truth, closed_loop([BODY] * 20), Limits(concurrency=4))
    assert outcomes(result) == {Outcome.OK: 20}
    marks = sorted([(one.send_ns, 1) for one in result.records] + [(one.end_ns, -1) for one in result.records])
    depth = peak = 0
    for _, step in marks:
        depth += step
        peak = max(peak, depth)
    assert peak == 4 == result.workers[0].peak_in_flight
    # Due when a slot came free: its lag is ours and small against an answer of 55 ms.
    assert result.workers[0].reused == 16


def test_what_a_concurrency_limit_holds_back_counts_from_its_due_time(truth: TruthServer) -> None:
    result = go(truth, open_loop([BODY] * 3, [0, 0, 0]), Limits(concurrency=1))
    waits_ms = [record.held_ns / 1e6 for record in result.records]
    assert waits_ms[0] == 0 and waits_ms[1] > 50 and waits_ms[2] > 100
    assert all(record.ttft_ns is not None and record.ttft_ns > record.held_ns for record in result.records)
    assert all(record.lag_ns is not None and record.lag_ns < 40e6 for record in result.records)


def test_turns_follow_each_other_with_their_pause(truth: TruthServer) -> None:
    jobs = sessions([[BODY] * 3] * 2, [[0.0, 0.05, 0.1]] * 2, due_s=[0.0, 0.02])
    result = go(truth, jobs, Limits())
    for session in range(2):
        turns = sorted((one for one in result.records if one.session == session), key=lambda one: one.turn)
        pauses_s = [(later.due_ns - sooner.end_ns) / 1e9 for sooner, later in pairwise(turns)]
        assert pauses_s == pytest.approx([0.05, 0.1], abs=1e-6)


@pytest.mark.slow
def test_long_reports_come_through_whole(truth: TruthServer) -> None:
    """More records than a pipe holds, from a worker whose event loop has looked at the pipe."""
    truth.change(replace(QUICK, ttft_ms=0, gap_ms=0, tokens=64))
    long = body(CHAT, "truth", "one two three", 64, stream=True)
    result = go(truth, closed_loop([long] * 1500), Limits(concurrency=50))
    assert outcomes(result) == {Outcome.OK: 1500} and not result.died


def test_workers_share_the_sessions(truth: TruthServer) -> None:
    result = go(truth, closed_loop([BODY] * 30), workers=2)
    assert outcomes(result) == {Outcome.OK: 30} and len(result.workers) == 2
    assert sum(worker.sent for worker in result.workers) == 30
    assert {share_of(session, 2) for session in range(30)} == {0, 1}


FAULTS = {
    "cut": (replace(QUICK, cut_share=0.2, seed=3), Outcome.CUT),
    "error": (replace(QUICK, error_share=0.2, seed=3), Outcome.SERVER_ERROR),
    "shed": (replace(QUICK, error_share=0.2, error_status=429, seed=3), Outcome.SHED),
    "rejected": (replace(QUICK, error_share=0.2, error_status=401, seed=3), Outcome.REJECTED),
    "error event": (replace(QUICK, stream_error_share=0.2, seed=3), Outcome.STREAM_ERROR),
    "invalid event": (replace(QUICK, invalid_share=0.2, seed=3), Outcome.BAD_BODY),
    "endless": (replace(QUICK, endless_share=0.2, seed=3), Outcome.TIMED_OUT),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_as_its_kind_and_harms_no_other_request(truth: TruthServer, fault: str) -> None:
    config, outcome = FAULTS[fault]
    truth.change(config)
    result = go(truth, closed_loop([BODY] * 60), Limits(concurrency=20, timeout_s=1.5))
    found = outcomes(result)
    assert set(found) == {Outcome.OK, outcome} and sum(found.values()) == 60
    assert 3 <= found[outcome] <= 25  # of 60 with a share of 0.2
    if outcome is not Outcome.TIMED_OUT:
        answered = sum(1 for one in truth.take_log().written if one.status in (0, 200))
        broken = found[outcome] if config.error_share else 0
        assert answered == 60 - broken


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({"done": False}, (Flag.NO_DONE,)),
        ({"usage": False}, (Flag.NO_USAGE,)),
        ({"tokens_per_event": 4}, (Flag.FIRST_TOKENS_GUESSED,)),
        ({"stall_after_events": 3, "stall_ms": 400.0}, (Flag.STALLED,)),
        ({"role_ms": 1.0}, ()),
    ],
)
def test_oddities_are_flagged(truth: TruthServer, change: dict[str, Any], flags: tuple[Flag, ...]) -> None:
    truth.change(replace(QUICK, **change))
    result = go(truth, closed_loop([BODY] * 3), stall_ms=300.0)
    assert outcomes(result) == {Outcome.OK: 3} and all(record.flags == flags for record in result.records)
    for record, written in zip(
        sorted(result.records, key=lambda one: one.response_id),
        sorted(truth.take_log().written, key=lambda one: one.response_id),
        strict=True,
    ):
        assert len(record.event_ns) == len(written.token_write_ns)
        assert record.first_ns > written.token_write_ns[0], "the role alone is not the first token"


def test_a_stream_that_ends_without_a_reason_is_cut(truth: TruthServer) -> None:
    truth.change(replace(QUICK, done=False, finish=False))
    assert outcomes(go(truth, closed_loop([BODY] * 2))) == {Outcome.CUT: 2}


def test_silence_ends_at_the_idle_timeout(truth: TruthServer) -> None:
    truth.change(replace(QUICK, stall_after_events=2, stall_ms=60_000))
    result = go(truth, closed_loop([BODY]), Limits(concurrency=1, idle_timeout_s=0.3))
    record = result.records[0]
    assert record.outcome is Outcome.TIMED_OUT and record.detail == "nothing came for 0.3 s"
    assert len(record.event_ns) == 2 and record.end_ns - record.last_ns < 2e9


def test_connections_that_died_while_idle_are_not_the_requests_fault(truth: TruthServer) -> None:
    truth.change(replace(QUICK, close_after_each=True))
    result = go(truth, closed_loop([BODY] * 12), Limits(concurrency=3))
    assert outcomes(result) == {Outcome.OK: 12}


def test_answers_that_are_no_streams(truth: TruthServer) -> None:
    whole = body(CHAT, "truth", "one two three", 8, stream=False)
    result = go(truth, closed_loop([whole] * 3))
    assert outcomes(result) == {Outcome.OK: 3}
    assert all(not one.streamed and one.ttft_ns is None and one.output_tokens == 8 for one in result.records)


def test_text_completions_are_read_too(truth: TruthServer) -> None:
    jobs = closed_loop([body("/v1/completions", "truth", "one two", 5, stream=True)] * 3)
    result = run(RunSpec(Target(truth.base_url + "/v1", "/v1/completions"), jobs, Limits(concurrency=1)))
    assert [(one.outcome, one.output_tokens, len(one.event_ns)) for one in result.records] == [(Outcome.OK, 5, 5)] * 3


def test_nobody_there_is_found_before_the_start() -> None:
    with pytest.raises(LoadTestError, match=r"cannot connect to 127.0.0.1:9: "):
        run(RunSpec(Target("http://127.0.0.1:9"), closed_loop([BODY]), Limits(concurrency=1)))


@pytest.mark.slow
def test_a_server_that_goes_away_is_told_by_kind() -> None:
    with TruthServer(replace(QUICK, gap_ms=100)) as server:
        threading.Timer(0.6, os.kill, (server.pid, signal.SIGKILL)).start()
        result = go(server, open_loop([BODY] * 20, [n / 10 for n in range(20)]), Limits(timeout_s=5))
    found = outcomes(result)
    assert found[Outcome.CUT] and found[Outcome.NO_CONNECTION] and sum(found.values()) == 20


def test_time_to_send_and_to_drain_are_limits(truth: TruthServer) -> None:
    truth.change(replace(QUICK, ttft_ms=700))
    limits = Limits(concurrency=1, stop_after_s=0.5, drain_s=0.1)
    result = go(truth, open_loop([BODY] * 10, [n / 10 for n in range(10)]), limits)
    # Five or six were due in half a second; one was sent, and did not end in time.
    found = outcomes(result)
    assert found[Outcome.UNFINISHED] == 1 and found[Outcome.UNSENT] in (4, 5) and len(found) == 2


@pytest.mark.parametrize("turns", [1, 4])
def test_a_closed_loop_does_not_drain_while_there_is_more_to_send(truth: TruthServer, turns: int) -> None:
    jobs = sessions([[BODY] * turns] * (40 // turns), [[0.0] * turns] * (40 // turns))
    result = go(truth, jobs, Limits(concurrency=4, drain_s=0.1))
    assert outcomes(result) == {Outcome.OK: 40}


def test_connections_without_a_socket_are_told_apart(truth: TruthServer) -> None:
    async def send_many() -> PoolCounts:
        ended: list[Flight] = []
        address = parse_base_url(truth.base_url)
        pool = Pool(
            address, None, connect_timeout_s=5, max_answer_bytes=1000, now_ns=time.monotonic_ns, ended=ended.append
        )
        for number in range(200):
            pool.send(Flight(number, b"GET /health HTTP/1.1\r\n\r\n", 0))
        while len(ended) < 200:
            await asyncio.sleep(0.01)
        pool.close()
        return pool.counts

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, before[1]))
    try:
        counts = asyncio.run(asyncio.wait_for(send_many(), 20))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert counts.opened and counts.lacked_sockets == counts.failed_to_open == 200 - counts.opened


def test_an_interrupted_run_keeps_what_was_seen(truth: TruthServer) -> None:
    def interrupt(counts: Counts) -> None:
        if counts.ended >= 10 and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    interrupted: list[bool] = []
    jobs = open_loop([BODY] * 2000, [n / 20 for n in range(2000)])
    begun_s = time.monotonic()
    result = run(RunSpec(Target(truth.base_url), jobs, Limits()), on_progress=interrupt)
    found = outcomes(result)
    assert result.interrupted and found[Outcome.OK] >= 10 and set(found) <= {Outcome.OK, Outcome.UNFINISHED}
    assert time.monotonic() - begun_s < 20


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_the_rest_is_kept(truth: TruthServer) -> None:
    def kill_one(_counts: Counts) -> None:
        if not killed:
            killed.append(next(pid for pid in children() if pid not in before))
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    before = children()
    jobs = open_loop([BODY] * 60, [n / 20 for n in range(60)])
    result = run(RunSpec(Target(truth.base_url), jobs, Limits(), workers=2), on_progress=kill_one)
    assert result.died == ("signal 9",)
    assert 0 < len(result.records) < 60 and outcomes(result) == {Outcome.OK: len(result.records)}


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]
