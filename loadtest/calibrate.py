"""What this machine can measure: the client against a server whose latencies are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from loadtest.arrivals import Spread, constant_rate, due_times_s
from loadtest.jobs import body, closed_loop, open_loop
from loadtest.metrics import quantile
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthConfig, TruthLog, TruthServer, Written
from loadtest.types import Job, Limits, LoadTestError, Record, Target

Load = TypeVar("Load", int, float)

ENDPOINT = "/v1/chat/completions"
STREAMS = (10, 100, 300, 1000)
RATES_RPS = (30.0, 150.0, 300.0)
# Small enough that a user of the figures need not think of it.
GOOD_MEAN_ERROR_MS = 1.0


class Truth(Protocol):
    """A server that logs what it did; TruthServer, or one of another make."""

    @property
    def base_url(self) -> str: ...

    def take_log(self) -> TruthLog: ...


@dataclass(frozen=True, slots=True)
class ErrorOf:
    """Client minus truth in milliseconds."""

    mean_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Point:
    """One load, what the client made of it, and what it cost.

    `error["ttft"]` and `["e2e"]` begin where the request was handed to the socket, and `["gap"]` compares each gap with
    the truth; `lag` is how late the client sent.
    """

    name: str
    requests: int
    completed: int
    error: Mapping[str, ErrorOf]
    lag_p99_ms: float
    client_cpu_share: float
    server_cpu_share: float
    server_late_p99_ms: float
    """How late the truth server was against its own schedule. Errors are against what it really did."""
    peak_rss_bytes: int
    reused_share: float

    @property
    def good(self) -> bool:
        """All answers came, and the mean TTFT is right within a millisecond."""
        return self.completed == self.requests and abs(self.error["ttft"].mean_ms) <= GOOD_MEAN_ERROR_MS


@dataclass(frozen=True, slots=True)
class Calibration:
    closed: Mapping[int, Point]
    """By the number of streams."""
    open: Mapping[float, Point]
    """By the request rate."""

    @property
    def max_streams(self) -> int:
        """The most streams up to which every load was measured well."""
        return _last_good(self.closed)

    @property
    def max_rps(self) -> float:
        return _last_good(self.open)


def calibrate(
    truth: TruthConfig,
    *,
    streams: Sequence[int] = STREAMS,
    rates_rps: Sequence[float] = RATES_RPS,
    duration_s: float = 4.0,
    seed: int = 0,
    workers: int = 1,
    on_point: Callable[[Point], None] | None = None,
) -> Calibration:
    """Measure each load for about `duration_s`. Takes the sum of them and a second each.

    Raises:
        LoadTestError: if the truth server or a worker dies.
    """
    closed: dict[int, Point] = {}
    open_: dict[float, Point] = {}
    with TruthServer(truth) as server:
        for count in streams:
            rounds = max(1, math.ceil(duration_s / answer_s(truth)))
            jobs = closed_loop(_bodies(truth, count * rounds))
            closed[count] = measure(server, f"{count} streams", jobs, Limits(concurrency=count), workers=workers)
            if on_point is not None:
                on_point(closed[count])
        for rate_rps in rates_rps:
            rng = np.random.default_rng(seed)
            due_s = due_times_s(constant_rate(rate_rps), Spread(), rng, duration_s=duration_s)
            jobs = open_loop(_bodies(truth, len(due_s)), list(due_s))
            open_[rate_rps] = measure(server, f"{rate_rps:g} requests/s", jobs, Limits(), workers=workers)
            if on_point is not None:
                on_point(open_[rate_rps])
    return Calibration(closed, open_)


def answer_s(truth: TruthConfig) -> float:
    """How long one answer takes."""
    return (truth.ttft_ms + (math.ceil(truth.tokens / truth.tokens_per_event) - 1) * truth.gap_ms) / 1e3


def measure(server: Truth, name: str, jobs: Sequence[Job], limits: Limits, *, workers: int = 1) -> Point:
    """Run one load and hold what the client says against what the server did."""
    server.take_log()
    result = run(RunSpec(Target(server.base_url, ENDPOINT), jobs, limits, workers=workers))
    return compare(name, result, server.take_log())


def compare(name: str, result: RunResult, log: TruthLog) -> Point:
    """Errors of all requests that both sides saw to their end."""
    truth = {written.response_id: written for written in log.written}
    pairs = [
        (record, truth[record.response_id]) for record in result.records if record.ok and record.response_id in truth
    ]
    if not pairs:
        raise LoadTestError(f"not one of {len(result.records)} answers could be compared with the truth")
    wall_s = max(worker.wall_s for worker in result.workers)
    late_ms = np.sort([written.late_max_ns / 1e6 for written in truth.values()])
    lags_ms = np.sort([record.lag_ns / 1e6 for record, _ in pairs if record.lag_ns is not None])
    sent = sum(worker.sent for worker in result.workers)
    return Point(
        name=name,
        requests=len(result.records),
        completed=sum(record.ok for record in result.records),
        error={metric: _error(errors) for metric, errors in _errors_ns(pairs).items()},
        lag_p99_ms=quantile(lags_ms, 0.99),
        client_cpu_share=sum(worker.cpu_s for worker in result.workers) / wall_s,
        server_cpu_share=log.cpu_s / wall_s,
        server_late_p99_ms=quantile(late_ms, 0.99),
        peak_rss_bytes=max(worker.peak_rss_bytes for worker in result.workers),
        reused_share=sum(worker.reused for worker in result.workers) / max(1, sent),
    )


def _errors_ns(pairs: Sequence[tuple[Record, Written]]) -> dict[str, list[int]]:
    ttft, gap, e2e = list[int](), list[int](), list[int]()
    for record, written in pairs:
        wrote_ns = np.array(written.token_write_ns, dtype=np.int64)
        ttft.append(record.first_ns - record.send_ns - int(wrote_ns[0] - written.received_ns))
        e2e.append(record.last_ns - record.send_ns - int(wrote_ns[-1] - written.received_ns))
        if len(wrote_ns) == len(record.event_ns):
            gap.extend((record.gaps_ns - np.diff(wrote_ns)).tolist())
    return {"ttft": ttft, "gap": gap, "e2e": e2e}


def _error(errors_ns: Sequence[int]) -> ErrorOf:
    """The P99 and the maximum are of the errors' sizes; the mean keeps its sign. NaN where nothing was compared."""
    if not errors_ns:
        return ErrorOf(math.nan, math.nan, math.nan)
    errors_ms = np.asarray(errors_ns) / 1e6
    sizes_ms = np.sort(np.abs(errors_ms))
    return ErrorOf(float(errors_ms.mean()), quantile(sizes_ms, 0.99), float(sizes_ms[-1]))


def _bodies(truth: TruthConfig, count: int) -> Iterator[bytes]:
    one = body(ENDPOINT, "truth", "How long does this take?", truth.tokens, stream=True)
    return (one for _ in range(count))


def _last_good(points: Mapping[Load, Point]) -> Load | int:
    good: Load | int = 0
    for load, point in sorted(points.items()):
        if not point.good:
            break
        good = load
    return good
