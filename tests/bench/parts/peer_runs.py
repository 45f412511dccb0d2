"""One load through another load generator: run within bounds, watched from another core, and told in one line."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from parts.children import BenchFailed, end_group
from parts.ferry import MARK, marked
from parts.peer_errors import COLUMNS, Served, error_of, served
from parts.peers import Job, Peer, environment

from loadtest.calibrate import Truth
from loadtest.document import Document, MetricFigures
from loadtest.exchange.read import read_results

LOOK_INTERVAL_S = 0.25
START_WITHIN_S = 180.0
SLOWER_AT_MOST = 8
"""A peer that takes so many times as long as the load should is given up."""
MB = 1e6
HEADING = (
    f"{'':>16} {' '.join(f'{title:>18}' for title in COLUMNS.values())} {'done':>12} {'per s':>16} {'CPU':>5} {'MB':>6}"
    "  difference of the means / of the P99s in ms"
)


@dataclass(frozen=True)
class Used:
    """CPU of all its processes as it went, in seconds by the monotonic clock, and the most that they had at once."""

    at_s: list[float]
    cpu_s: list[float]
    peak_rss_bytes: int

    def cpu_share(self, begun_s: float, ended_s: float) -> float:
        """Of a core, between two instants: its start and its report are left out."""
        begun_cpu_s, ended_cpu_s = np.interp([begun_s, ended_s], self.at_s, self.cpu_s)
        return float(ended_cpu_s - begun_cpu_s) / (ended_s - begun_s)


def line_of(peer: Peer, python: Path, job: Job, server: Truth) -> str:
    """Run the load and say how it went.

    Raises:
        BenchFailed: when the peer fails, leaves no report, or takes far longer than it should.
    """
    server.take_log()
    with tempfile.TemporaryDirectory() as folder:
        told, used = _run(peer, python, replace(job, folder=Path(folder)))
    truth = served(server.take_log().written, job.requests, job.tokens)
    cpu_share = used.cpu_share(truth.begun_s, truth.ended_s)
    done = told.total.outcomes.get("ok", 0)
    return line(peer.name, told.total.metrics, truth, job, done, cpu_share, used.peak_rss_bytes)


def line(
    name: str,
    told: Mapping[str, MetricFigures],
    truth: Served,
    job: Job,
    done: int,
    cpu_share: float,
    peak_rss_bytes: int,
) -> str:
    """Answers a second are counted by the server, and set beside what the load would give without any delay."""
    errors = (f"{error_of(told, truth, metric):>18}" for metric in COLUMNS)
    return (
        f"{name:>16} {' '.join(errors)} {f'{done}/{job.requests}':>12} "
        f"{f'{truth.rps:.1f} of {job.requests / job.takes_s:.1f}':>16} {cpu_share:5.0%} {peak_rss_bytes / MB:6.0f}"
    )


def _run(peer: Peer, python: Path, job: Job) -> tuple[Document, Used]:
    within_s = START_WITHIN_S + SLOWER_AT_MOST * job.takes_s
    log, mark = job.folder / "output.log", uuid.uuid4().hex
    command = peer.command(python, job)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=job.folder,
            env={**environment(peer, job), MARK: mark},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {job.core}),
        )
        try:
            used = _watch(process.pid, time.monotonic() + within_s)
        finally:
            end_group(process)
            for left in marked(mark):  # in groups of their own
                left.kill()
    if used is None:
        raise BenchFailed(f"it took longer than {within_s:.0f} s")
    result = job.folder / peer.result
    if process.returncode or not result.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        why = f"exit code {process.returncode}" if process.returncode else f"it left no {peer.result}"
        raise BenchFailed(f"{why}: {' / '.join(last)}")
    return read_results(result.read_bytes(), peer.result)[0], used


def _watch(pid: int, until_s: float) -> Used | None:
    """Until it has ended, but not reaped; None when it does not end in time."""
    by_process_s: dict[int, float] = {}
    at_s: list[float] = []
    cpu_s: list[float] = []
    peak_rss_bytes = 0
    while (now_s := time.monotonic()) < until_s:
        family = _family(pid)
        if not family:
            return Used(at_s, cpu_s, peak_rss_bytes)
        rss_bytes = 0
        for process in family:
            try:
                with process.oneshot():
                    times, rss = process.cpu_times(), process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            by_process_s[process.pid] = times.user + times.system
            rss_bytes += rss
        at_s.append(now_s)
        cpu_s.append(sum(by_process_s.values()))
        peak_rss_bytes = max(peak_rss_bytes, rss_bytes)
        time.sleep(LOOK_INTERVAL_S)
    return None


def _family(pid: int) -> list[psutil.Process]:
    """Empty as soon as the first of them has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return []
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
