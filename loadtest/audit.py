"""What a run says about the client itself, and whether the client was the limit. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Above these the figures tell of the client and not of the server (loadtest design: 30 % headroom, 5 % of the SLO).
MAX_CPU_SHARE = 0.70
MAX_CPU_WAIT_SHARE = 0.20
MAX_LAG_OF_TTFT = 0.05
MIN_LAG_LIMIT_MS = 1.0
MIN_DELIVERED = 0.98


@dataclass(frozen=True, slots=True)
class WorkerAudit:
    """One worker process while the run went on."""

    wall_s: float
    cpu_s: float
    cpu_wait_s: float  # ready to run, but the machine had no core free
    peak_cpu_share: float  # of one core, over a second
    beats: int
    stall_p99_ms: float  # how late a timer of 10 ms was served
    stall_max_ms: float
    sent: int
    reused: int
    resent: int
    opened: int
    failed_to_open: int
    peak_in_flight: int
    peak_rss_bytes: int
    clock_step_ms: float  # how far the wall clock moved against the monotonic one
    uvloop: bool
    spool_error: str = ""
    lacked_sockets: int = 0  # connections that this machine had no socket for
    clock_offset_ms: float = 0.0  # of another machine's clock, taken out of all times
    clock_bound_ms: float = 0.0  # how far that may be off

    @property
    def cpu_share(self) -> float:
        return self.cpu_s / self.wall_s if self.wall_s else 0.0

    @property
    def cpu_wait_share(self) -> float:
        return self.cpu_wait_s / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True, slots=True)
class Audit:
    """All workers together."""

    workers: tuple[WorkerAudit, ...]
    due: int
    sent: int
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    offered_rps: float
    delivered_rps: float

    @property
    def reused_share(self) -> float:
        sent = sum(worker.sent for worker in self.workers)
        return sum(worker.reused for worker in self.workers) / sent if sent else 0.0


def faults(audit: Audit, *, ttft_ms: float | None, excused: bool, died: tuple[str, ...]) -> tuple[str, ...]:
    """Why this run is not valid; empty if it is.

    `ttft_ms` is the SLO's limit or, without one, the median that was measured: lag is judged against it.
    `excused`: that requests were not sent is not the client's doing (a concurrency limit, an interruption).
    """
    found = [f"a worker died: {why}" for why in died]
    limit_ms = max(MIN_LAG_LIMIT_MS, MAX_LAG_OF_TTFT * ttft_ms) if ttft_ms is not None else MIN_LAG_LIMIT_MS
    if audit.lag_p99_ms > limit_ms:
        found.append(f"the client sent late: lag p99 is {audit.lag_p99_ms:.1f} ms, at most {limit_ms:.1f} will do")
    for number, worker in enumerate(audit.workers):
        if worker.cpu_share > MAX_CPU_SHARE:
            found.append(
                f"worker {number} used {worker.cpu_share:.0%} of a core, at most {MAX_CPU_SHARE:.0%} will do; "
                "take more workers"
            )
        if worker.cpu_wait_share > MAX_CPU_WAIT_SHARE:
            found.append(f"worker {number} waited {worker.cpu_wait_share:.0%} of the time for a free core")
        if worker.lacked_sockets:
            found.append(
                f"worker {number} had no socket left for {worker.lacked_sockets} connections; raise the limit of open "
                "files (ulimit -Hn) or take more workers"
            )
        if worker.stall_p99_ms > limit_ms:
            found.append(f"worker {number}'s event loop stalled: p99 is {worker.stall_p99_ms:.1f} ms")
        if worker.clock_bound_ms > limit_ms:
            found.append(
                f"worker {number}'s clock is known to {worker.clock_bound_ms:.1f} ms only, {limit_ms:.1f} will do; "
                "take a nearer machine or a shorter run"
            )
    if audit.due and audit.sent / audit.due < MIN_DELIVERED and not excused:
        found.append(f"only {audit.sent} of {audit.due} due requests were sent")
    return tuple(found)
