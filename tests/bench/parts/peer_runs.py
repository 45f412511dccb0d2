"""One load through another load generator, and how far its report is from what the server did."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from parts.children import BenchFailed
from parts.peers import Job, Peer, environment

from loadtest.calibrate import Truth
from loadtest.document import Document, MetricFigures
from loadtest.exchange.read import read_results
from loadtest.truth import Written

LOOK_INTERVAL_S = 0.25
START_WITHIN_S = 180.0
SLOWER_AT_MOST = 8
"""A peer that takes so many times as long as the load should is given up."""
MB = 1e6
HEADING = (
    f"{'':>16} {'TTFT error':>18} {'gap error':>18} {'E2E error':>18} {'done':>12} {'per s':>7} {'CPU s':>6} {'MB':>6}"
    "  difference of the means / of the P99, in ms"
)


@dataclass(frozen=True)
class Used:
    """What a run took, its start and report included: CPU, and the most that all its processes had at once."""

    cpu_s: float
    peak_rss_bytes: int


def line_of(peer: Peer, python: Path, job: Job, server: Truth, load_s: float) -> str:
    """Run the load and say how it went; `load_s` is what it should take.

    Raises:
        BenchFailed: when the peer fails, leaves no report, or takes far longer.
    """
    server.take_log()
    with tempfile.TemporaryDirectory() as folder:
        told, used = _run(peer, python, replace(job, folder=Path(folder)), START_WITHIN_S + SLOWER_AT_MOST * load_s)
    total = told.total
    errors = (_error(total.metrics.get(name), truth_ms) for name, truth_ms in _truth_ms(server.take_log().written))
    done = f"{total.outcomes.get('ok', 0)}/{job.requests}"
    return (
        f"{peer.name:>16} {' '.join(errors)} {done:>12} {total.completed_rps or 0:7.1f} {used.cpu_s:6.1f} "
        f"{used.peak_rss_bytes / MB:6.0f}"
    )


def _run(peer: Peer, python: Path, job: Job, within_s: float) -> tuple[Document, Used]:
    log = job.folder / "output.log"
    command = peer.command(python, job)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=job.folder, env=environment(peer), stdout=output, stderr=output, start_new_session=True
        )
        try:
            used = _watch(process.pid, time.perf_counter() + within_s)
        finally:
            _end(process)
    if used is None:
        raise BenchFailed(f"{peer.name} took longer than {within_s:.0f} s")
    result = job.folder / peer.result
    if process.returncode or not result.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise BenchFailed(f"{peer.name} ended with exit code {process.returncode}: {' / '.join(last)}")
    return read_results(result.read_bytes(), peer.result)[0], used


def _watch(pid: int, until_s: float) -> Used | None:
    """Until it has ended, but not reaped; None when it does not end in time."""
    cpu_s: dict[int, float] = {}
    peak_rss_bytes = 0
    while time.perf_counter() < until_s:
        family = _family(pid)
        if not family:
            return Used(sum(cpu_s.values()), peak_rss_bytes)
        rss_bytes = 0
        for process in family:
            try:
                with process.oneshot():
                    times, rss = process.cpu_times(), process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            cpu_s[process.pid] = times.user + times.system
            rss_bytes += rss
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its whole group: some leave workers behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _truth_ms(written: Sequence[Written]) -> list[tuple[str, np.ndarray]]:
    """What the server did, by our name of the metric: TTFT and E2E per request, the gaps of all."""
    answers = [np.array(one.token_write_ns, dtype=np.int64) for one in written if one.status == 200]
    received = [one.received_ns for one in written if one.status == 200]
    if not answers:
        raise BenchFailed("not one request came to the server")
    pairs = list(zip(answers, received, strict=True))
    return [
        ("ttft_net", np.array([wrote[0] - at for wrote, at in pairs]) / 1e6),
        ("gap", np.concatenate([np.diff(wrote) for wrote in answers]) / 1e6),
        ("e2e_net", np.array([wrote[-1] - at for wrote, at in pairs]) / 1e6),
    ]


def _error(told: MetricFigures | None, truth_ms: np.ndarray) -> str:
    """The peer's mean and P99 less the server's; requests cannot be told apart in its report."""
    p99_ms = told.completed_ms.get("p99") if told is not None else None
    if told is None or told.mean_ms is None or p99_ms is None:
        return f"{'not told':>18}"
    return f"{told.mean_ms - truth_ms.mean():8.2f} /{p99_ms - np.quantile(truth_ms, 0.99):8.1f}"
