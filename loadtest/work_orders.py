"""Who of the workers sends what: the jobs of a run in shares. Pure."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

from loadtest.spec import RunSpec
from loadtest.types import Job, LoadTestError
from loadtest.worker import WorkOrder

# For requests that come one after the other. Those that are due at once need a connection each anyway.
MAX_WARM_CONNECTIONS = 512


def share_of(session: int, workers: int) -> int:
    """The worker that has this session: a conversation stays in one place, whatever the seed."""
    return zlib.crc32(session.to_bytes(8, "little", signed=True)) % workers


def orders_of(spec: RunSpec, run_id: str, workers: int) -> list[WorkOrder]:
    """One order per worker that has any job. A concurrency limit is shared out as evenly as it goes."""
    shares: list[list[Job]] = [[] for _ in range(workers)]
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
        )
        for share, part in zip(shares, _parts(concurrency or 0, len(shares)), strict=True)
    ]


def _parts(whole: int, count: int) -> list[int]:
    return [whole // count + (number < whole % count) for number in range(count)]


def _warm_connections(spec: RunSpec) -> int:
    """As many as the first second will probably need; at least one, so that it is found where nobody listens."""
    slots = spec.limits.concurrency if spec.limits.concurrency is not None else len(spec.jobs)
    at_once = sum(1 for job in spec.jobs if job.turn == 0 and not job.due_s)
    soon = sum(1 for job in spec.jobs if job.turn == 0 and job.due_s and job.due_s < 1.0)
    return max(1, min(slots, at_once + min(soon, MAX_WARM_CONNECTIONS)))
