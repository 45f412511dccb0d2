"""Bytes, exchanges and records to test with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.types import Ending, Exchange, Flag, Job, Outcome, Record

MS = 1_000_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def delta(finish: str | None = None, **words: Any) -> dict[str, Any]:
    return {"id": "r1", "choices": [{"index": 0, "delta": words, "finish_reason": finish}]}


def usage(completion_tokens: int, prompt_tokens: int = 5) -> dict[str, Any]:
    return {
        "id": "r1",
        "choices": [],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


def exchange(
    reads: Sequence[tuple[float, bytes]],
    ending: Ending = Ending.COMPLETE,
    *,
    due_ms: float = 0.0,
    send_ms: float = 1.0,
    detail: str = "",
) -> Exchange:
    """`reads`: milliseconds and bytes."""
    read_ns = [round(at_ms * MS) for at_ms, _ in reads]
    return Exchange(
        number=7,
        ending=ending,
        detail=detail,
        due_ns=round(due_ms * MS),
        held_ns=0,
        send_ns=round(send_ms * MS),
        end_ns=read_ns[-1] if read_ns else round(send_ms * MS),
        reused=False,
        resent=False,
        read_ns=read_ns,
        pieces=[piece for _, piece in reads],
    )


def stream(*events: tuple[float, Any], end_ms: float | None = None) -> list[tuple[float, bytes]]:
    """The reads of a whole streamed answer: one chunk per event, the last chunk with the last event."""
    reads = [(at_ms, chunk(event(data))) for at_ms, data in events]
    reads[0] = (reads[0][0], HEAD + reads[0][1])
    reads.append((end_ms if end_ms is not None else reads[-1][0], LAST_CHUNK))
    return reads


def job(number: int = 7, **fields: Any) -> Job:
    return Job(**{"number": number, "body": b"{}", "session": number, **fields})


def record(
    event_ms: Sequence[float] = (100.0, 150.0, 200.0),
    outcome: Outcome = Outcome.OK,
    *,
    number: int = 0,
    due_ms: float = 0.0,
    send_ms: float | None = None,
    output_tokens: int | None = None,
    flags: tuple[Flag, ...] = (),
    slo_class: str = "",
) -> Record:
    event_ns = np.array([round(at_ms * MS) for at_ms in event_ms], dtype=np.int64)
    return Record(
        number=number,
        session=number,
        turn=0,
        slo_class=slo_class,
        outcome=outcome,
        detail="",
        flags=flags,
        status=200,
        due_ns=round(due_ms * MS),
        held_ns=0,
        send_ns=round((due_ms if send_ms is None else send_ms) * MS) or 1,
        first_ns=int(event_ns[0]) if event_ns.size else 0,
        last_ns=int(event_ns[-1]) if event_ns.size else 0,
        end_ns=int(event_ns[-1]) if event_ns.size else round(due_ms * MS),
        event_ns=event_ns,
        output_tokens=len(event_ms) if output_tokens is None else output_tokens,
        first_tokens=1,
        prompt_tokens=5,
        streamed=True,
        finish_reason="stop",
        response_id=f"r{number}",
        reused=True,
    )
