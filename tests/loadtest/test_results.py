"""What is saved is what was seen, as far as there is room."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.audit import Audit, WorkerAudit, faults
from loadtest.report import Verdict, as_json, build
from loadtest.results import read_records, save
from loadtest.spec import RunResult, RunSpec
from loadtest.spool import Spool
from loadtest.types import Flag, Limits, LoadTestError, Outcome, Record, Slo, Target
from tests.loadtest.builders import MS, exchange, job, record

START_NS = 5_000_000_000_000
SLO = Slo(ttft_ms=500)

WORKER = WorkerAudit(
    wall_s=10.0,
    cpu_s=2.0,
    cpu_wait_s=0.1,
    peak_cpu_share=0.3,
    beats=1000,
    stall_p99_ms=0.2,
    stall_max_ms=3.0,
    sent=10,
    reused=8,
    resent=0,
    opened=2,
    failed_to_open=0,
    peak_in_flight=3,
    peak_rss_bytes=40_000_000,
    clock_step_ms=0.0,
    uvloop=True,
)


def later(one: Record) -> Record:
    """The record, moved to where a run's clock stands."""
    moved = {name: getattr(one, name) + START_NS for name in ("due_ns", "send_ns", "end_ns")}
    instants = {name: value + START_NS if (value := getattr(one, name)) else 0 for name in ("first_ns", "last_ns")}
    return replace(one, **moved, **instants, event_ns=one.event_ns + START_NS)


def result(records: list[Record], slo: Slo = SLO, **fields: Any) -> RunResult:
    jobs = [job(number, due_s=number / 10) for number in range(len(records))]
    target = Target("http://127.0.0.1:8000", headers=(("Authorization", "Bearer secret-key"),))
    spec = RunSpec(target, jobs, Limits(timeout_s=9), slo)
    made = RunResult(
        spec=spec,
        run_id="abc",
        start_ns=START_NS,
        started_at_s=1.8e9,
        records=tuple(later(one) for one in records),
        workers=(WORKER,),
        interrupted=False,
        died=(),
    )
    return replace(made, **fields)


def some(count: int, late: int = 0) -> list[Record]:
    """`late` of them have a TTFT of 900 ms, the others of 100."""
    return [
        record([100.0 * n + (900 if n < late else 100), 100.0 * n + 950], number=n, due_ms=100.0 * n)
        for n in range(count)
    ]


def test_records_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    records = [*some(3), record([], Outcome.NO_CONNECTION, number=3, flags=(Flag.RESENT,))]
    records[3] = replace(records[3], text="é", detail="refused", prompt_tokens=None)
    made = result(records)
    made = replace(made, records=(*made.records[:3], replace(made.records[3], send_ns=0)))
    saved = save(made, build(made), tmp_path / "new" / "folder")
    assert not saved.error and saved.records == 4
    back = read_records(saved.records_file)
    for read, written in zip(back, made.records, strict=True):
        assert np.array_equal(read.event_ns, written.event_ns - START_NS)
        moved = {name: getattr(written, name) - START_NS for name in ("due_ns", "end_ns")}
        moved |= {
            name: getattr(written, name) and getattr(written, name) - START_NS for name in ("send_ns", "first_ns")
        }
        moved |= {"last_ns": written.last_ns and written.last_ns - START_NS}
        assert replace(read, event_ns=written.event_ns) == replace(written, **moved), "identity of arrays aside"


def test_a_report_holds_no_key_and_is_strict_json(tmp_path: Path) -> None:
    made = result([*some(2), record([], Outcome.CUT, number=2, due_ms=200)])
    saved = save(made, build(made), tmp_path)
    text = saved.report_file.read_text() + saved.records_file.read_text()
    assert "secret-key" not in text and "Infinity" not in text and "NaN" not in text
    tree = json.loads(saved.report_file.read_text())
    assert tree == as_json(build(made), made)
    assert tree["total"]["metrics"]["ttft"]["all_ms"]["p99"] == "inf" and tree["format"] == "ferry-load/1"


def test_a_full_disk_costs_what_did_not_fit_and_nothing_else(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    (tmp_path / "load-abc.jsonl").symlink_to("/dev/full")
    made = result(some(5))
    saved = save(made, build(made), tmp_path)
    assert "No space left" in saved.error and saved.records == 0
    assert json.loads(saved.report_file.read_text())["total"]["due"] == 5


def test_a_line_that_was_cut_off_is_left_out_and_a_broken_one_told(tmp_path: Path) -> None:
    made = result(some(3))
    file = save(made, build(made), tmp_path).records_file
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert len(read_records(file)) == 2
    file.write_bytes(b'{"number":1}\n' + whole)
    with pytest.raises(LoadTestError, match="line 1 is no record"):
        read_records(file)


@pytest.mark.parametrize(
    ("late", "count", "verdict", "certain"),
    [
        (0, 400, Verdict.MET, True),
        (18, 400, Verdict.MET, False),
        (24, 400, Verdict.MISSED, False),
        (200, 400, Verdict.MISSED, True),
        (0, 10, Verdict.MET, False),
    ],
)
def test_the_verdict_says_how_sure_it_is(late: int, count: int, verdict: Verdict, certain: bool) -> None:
    report = build(result(some(count, late)))
    assert (report.verdict, report.certain) == (verdict, certain)
    assert build(result(some(count, late), Slo())).verdict is Verdict.NO_SLO


def test_the_window_of_an_open_loop_ends_a_mean_gap_after_the_last_due_time() -> None:
    report = build(result(some(11)))
    assert report.total.window_s == pytest.approx(1.1) and report.audit.offered_rps == pytest.approx(10.0)


def test_a_load_of_known_length_has_that_window() -> None:
    made = result(some(11))
    made = replace(made, spec=replace(made.spec, lasts_s=4.0, warmup_s=0.5))
    assert build(made).total.window_s == 3.5 and build(made).total.due_rps == pytest.approx(6 / 3.5)
    assert build(replace(made, interrupted=True)).total.window_s < 1.0


def test_what_a_new_connection_took_is_not_the_clients_lag() -> None:
    records = [replace(one, send_ns=one.due_ns + 60 * MS, connect_ns=59 * MS) for one in some(20)]
    report = build(result(records))
    assert report.audit.lag_p99_ms == pytest.approx(1.0) and not report.faults


def test_answers_that_are_no_streams_are_told_where_the_slo_needs_streams() -> None:
    whole = [replace(one, streamed=False, first_ns=0, last_ns=0) for one in some(3)]
    assert any("3 answers were no streams" in one for one in build(result(whole)).warnings)
    assert not build(result(whole, Slo(e2e_ms=500))).warnings


def test_a_client_that_was_late_makes_the_run_invalid() -> None:
    records = [replace(one, send_ns=one.due_ns + 60 * MS) for one in some(20)]
    report = build(result(records))
    assert report.verdict is Verdict.INVALID and "lag p99 is 60.0 ms, at most 25.0" in report.faults[0]


AUDIT = Audit(
    (WORKER,), due=100, sent=100, lag_p50_ms=0.1, lag_p99_ms=0.2, lag_max_ms=1, offered_rps=10, delivered_rps=10
)


@pytest.mark.parametrize(
    ("audit", "told"),
    [
        (AUDIT, None),
        (replace(AUDIT, workers=(replace(WORKER, cpu_s=7.5),)), "used 75% of a core"),
        (replace(AUDIT, workers=(WORKER, replace(WORKER, cpu_wait_s=3.0))), "worker 1 waited 30%"),
        (replace(AUDIT, workers=(replace(WORKER, stall_p99_ms=40.0),)), "event loop stalled: p99 is 40.0 ms"),
        (replace(AUDIT, workers=(replace(WORKER, lacked_sockets=3),)), "no socket left for 3 connections"),
        (replace(AUDIT, sent=90), "only 90 of 100"),
        (replace(AUDIT, lag_p99_ms=26.0), "lag p99 is 26.0 ms"),
    ],
)
def test_each_limit_of_the_client_is_told(audit: Audit, told: str | None) -> None:
    found = faults(audit, ttft_ms=500, excused=False, died=())
    assert (found == ()) if told is None else (len(found) == 1 and told in found[0])


def test_a_dead_worker_is_a_fault_and_an_excuse_is_one() -> None:
    assert faults(AUDIT, ttft_ms=None, excused=False, died=("signal 9",)) == ("a worker died: signal 9",)
    assert faults(replace(AUDIT, sent=1), ttft_ms=None, excused=True, died=()) == ()


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20, 1 << 30])
def test_a_spool_gives_back_what_it_took(tmp_path: Path, in_memory_bytes: int) -> None:
    spool = Spool(tmp_path, in_memory_bytes)
    taken = [replace(exchange([(n, b"x" * 3000)]), number=n) for n in range(2000)]
    for one in taken:
        spool.add(one)
    back = sorted(spool.drain(), key=lambda one: one.number)
    assert back == taken and not spool.error and not list(tmp_path.iterdir())


def test_a_spool_without_room_keeps_everything_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "missing", in_memory_bytes=0)
    taken = [replace(exchange([(n, b"x" * 3000)]), number=n) for n in range(2000)]
    for one in taken:
        spool.add(one)
    assert sorted(spool.drain(), key=lambda one: one.number) == taken and "No such file" in spool.error
