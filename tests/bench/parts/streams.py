"""Streams and their timing: what one request gave and when, the closed loop that drives them, and the HTTP client.

The client reads raw bytes and counts the ends of server-sent events; it parses nothing until a stream is over.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np
import uvloop
from parts.children import BenchFailed, answer_all

Request = TypeVar("Request")

EVENT_END = b"\n\n"
READ_BYTES = 1 << 16
SHOWN_BYTES = 600
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
USAGE = re.compile(rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')


@dataclass(frozen=True, slots=True)
class Stream:
    """One request: when it was sent, when each event with tokens came, and how many tokens there were."""

    sent_s: float
    events_s: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.events_s[0] - self.sent_s


@dataclass(frozen=True, slots=True)
class Run:
    """A closed loop that ended: its streams, its length, and the CPU time of the process that drove it."""

    streams: tuple[Stream, ...]
    wall_s: float
    driver_cpu_s: float

    @property
    def output_tokens(self) -> int:
        return sum(stream.output_tokens for stream in self.streams)

    @property
    def events(self) -> int:
        return sum(len(stream.events_s) for stream in self.streams)


@dataclass(frozen=True, slots=True)
class HttpJob:
    """Chat requests for one endpoint, at most `concurrency` at a time; each must give `output_tokens` tokens."""

    host: str
    port: int
    bodies: tuple[bytes, ...]
    concurrency: int
    output_tokens: int


def ttft_ms(runs: Sequence[Run], quantile: float) -> float:
    return 1e3 * float(np.quantile([stream.ttft_s for run in runs for stream in run.streams], quantile))


def itl_ms(runs: Sequence[Run], quantile: float) -> float:
    gaps = [np.diff(stream.events_s) for run in runs for stream in run.streams]
    return 1e3 * float(np.quantile(np.concatenate(gaps), quantile))


async def closed_loop(
    requests: Sequence[Request], concurrency: int, one: Callable[[Request], Awaitable[Stream]]
) -> Run:
    """Run all requests, `concurrency` at a time: a new one starts when one ends."""
    left = iter(requests)
    streams: list[Stream] = []

    async def worker() -> None:
        for request in left:
            streams.append(await one(request))

    started_s, cpu_before_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return Run(tuple(streams), time.perf_counter() - started_s, time.process_time() - cpu_before_s)


def client_main(conn: Connection) -> None:
    """The HTTP client's process: HttpJob → Run."""
    conn.send("ready")
    uvloop.run(answer_all(conn, _run_job))


async def _run_job(job: HttpJob) -> Run:
    try:
        return await closed_loop(job.bodies, job.concurrency, lambda body: _stream(job, body))
    except* BenchFailed as group:
        raise group.exceptions[0] from None


async def _stream(job: HttpJob, body: bytes) -> Stream:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sent_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(job.host, job.port)
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    status = STATUS.match(answer)
    if status is None or status[1] != b"200":
        raise BenchFailed(f"HTTP error: {(answer + await reader.read())[:SHOWN_BYTES].decode(errors='replace')}")
    pieces, events_s, half = [], [], b""
    while piece := await reader.read(READ_BYTES):
        now_s = time.perf_counter()
        events_s += [now_s] * (half + piece).count(EVENT_END)
        half = b"" if piece.endswith(EVENT_END) else piece[-1:]
        pieces.append(piece)
    writer.close()
    return _checked(job, b"".join(pieces), sent_s, events_s)


def _checked(job: HttpJob, text: bytes, sent_s: float, events_s: list[float]) -> Stream:
    """The stream, if it is whole. Its first event is the role; the last two are the usage and the end."""
    usage = USAGE.search(text)
    shown = text[-SHOWN_BYTES:].decode(errors="replace")
    if usage is None or b"data: [DONE]" not in text or b'data: {"error"' in text:
        raise BenchFailed(f"a stream broke: …{shown}")
    prompt_tokens, output_tokens = int(usage[1]), int(usage[2])
    if output_tokens != job.output_tokens:
        raise BenchFailed(f"{output_tokens} tokens came of {job.output_tokens}: …{shown}")
    return Stream(sent_s, tuple(events_s[1:-2]), prompt_tokens, output_tokens)
