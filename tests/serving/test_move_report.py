"""The report of moves in answers: what a client that asks gets, and that everybody else's answer stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contexts.context import Context
from serving.contexts.move_log import MoveLog, wanted_log
from serving.gateway.error_envelope import Message
from serving.gateway.move_report import MoveReport
from serving.gateway.sse import EventSplitter, data_of
from tests.serving.chunks import chunked

PATH = "/v1/chat/completions"
WANTED = ((b"X-Ferry-Moves", b"1"),)
SSE, JSON = (b"content-type", b"text/event-stream; charset=utf-8"), (b"content-type", b"application/json")
Step = Message | Callable[[MoveLog], None]

WORD = b'data: {"choices":[{"delta":{"content":"\\"usage\\": {"}}],"usage":null}\n\n'
ON_THE_WAY = b'data: {"choices":[{"delta":{}}],"usage":{"total_tokens":3}}\n\n'
CHAT_USAGE = b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n'
CREATED = b'event: response.created\ndata: {"response":{"usage":null},"type":"response.created"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"response":{"usage":{"a":1}},"type":"response.completed"}\n\n'
STARTED = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":4}}}\n\n'
DELTA = b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
NO_JSON = b'data: {"usage": {\n\n'
EVENTS = (WORD, ON_THE_WAY, CHAT_USAGE, CREATED, COMPLETED, STARTED, DELTA, DONE, NO_JSON, b": ping\n\n")


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def chunk(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def move(mode: str = "kv", at_token: int = 3, gap_s: float = 0.0231) -> Callable[[MoveLog], None]:
    """A move that happens, and is over, between two chunks."""

    def happens(log: MoveLog) -> None:
        context = Context(request_id="r", num_prompt_tokens=10, max_tokens=99, output_token_ids=[0] * at_token)
        recomputed_tokens = context.num_tokens if mode == "replay" else 0
        log.left(context, reason="drain", mode=mode, recomputed_tokens=recomputed_tokens)
        log.arrived(context, gap_s=gap_s)

    return happens


async def answer(
    *steps: Step, headers: tuple[tuple[bytes, bytes], ...] = WANTED, path: str = PATH, kind: str = "http"
) -> list[Message]:
    """What a client gets when an app takes these steps."""
    sent: list[Message] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for step in steps:
            if callable(step):
                log = wanted_log.get()
                assert log is not None
                step(log)
            else:
                await send(step)

    async def receive() -> Message:
        raise AssertionError("nothing is received here")

    async def send(message: Message) -> None:
        sent.append(message)

    await MoveReport(app, routes={PATH})({"type": kind, "path": path, "headers": list(headers)}, receive, send)
    assert wanted_log.get() is None, "the log is the request's alone"
    return sent


def bodies(sent: list[Message]) -> list[bytes]:
    return [message["body"] for message in sent[1:]]


@pytest.mark.parametrize(
    "request_of",
    [
        {"headers": ()},
        {"headers": ((b"x-ferry-moves", b"0"),)},
        {"path": "/v1/responses/resp_1"},
        {"kind": "websocket"},
    ],
)
async def test_an_answer_nobody_asked_for_is_the_very_same_messages(request_of: dict[str, Any]) -> None:
    messages = [start(SSE), chunk(b"data: half"), chunk(CHAT_USAGE), chunk(b"", more=False)]
    sent = await answer(*messages, **request_of)
    assert all(got is given for got, given in zip(sent, messages, strict=True))


async def test_a_comment_comes_before_the_next_chunk_after_a_move() -> None:
    sent = await answer(
        start(SSE),
        chunk(WORD),
        move(at_token=57, gap_s=0.02314),
        chunk(WORD),
        chunk(WORD),
        move("replay", at_token=60, gap_s=1.5),
        move(at_token=61),
        chunk(DONE),
        chunk(b"", more=False),
    )
    assert bodies(sent) == [
        WORD,
        b": ferry move mode=kv reason=drain at_token=57 gap_ms=23.1\n\n" + WORD,
        WORD,
        b": ferry move mode=replay reason=drain at_token=60 gap_ms=1500.0\n\n"
        b": ferry move mode=kv reason=drain at_token=61 gap_ms=23.1\n\n" + DONE,
        b"",
    ]
    assert [message["more_body"] for message in sent[1:]] == [True, True, True, True, False]


async def test_a_comment_does_not_tear_an_event_apart() -> None:
    sent = await answer(
        start(SSE), chunk(WORD + WORD[:9]), move(), chunk(WORD[9:-1]), chunk(WORD[-1:] + DONE), chunk(b"x", more=False)
    )
    comment = b": ferry move mode=kv reason=drain at_token=3 gap_ms=23.1\n\n"
    assert bodies(sent) == [WORD, comment + WORD + DONE, b"x"]


FERRY = {"moves": 2, "kv": 1, "replay": 1, "gap_ms": [23.1, 500.0], "recomputed_tokens": 14}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (CHAT_USAGE, {"choices": [], "usage": {"total_tokens": 9, "ferry": FERRY}}),
        (COMPLETED, {"response": {"usage": {"a": 1, "ferry": FERRY}}, "type": "response.completed"}),
        (DELTA, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5, "ferry": FERRY}}),
    ],
)
async def test_the_event_that_tells_usage_tells_moves(event: bytes, told: dict[str, Any]) -> None:
    moves = (move(), move("replay", at_token=4, gap_s=0.5))
    sent = await answer(start(SSE), *moves, chunk(WORD), chunk(event), chunk(DONE, more=False))
    changed = bodies(sent)[1]
    assert json.loads(data_of(changed)) == told
    assert changed.startswith(event[: event.index(b"data: ")]) and changed.endswith(b"\n\n")


@pytest.mark.parametrize("event", sorted(set(EVENTS) - {CHAT_USAGE, COMPLETED, DELTA}))
async def test_every_other_event_stays_as_it_is(event: bytes) -> None:
    assert bodies(await answer(start(SSE), chunk(event), chunk(b"", more=False))) == [event, b""]


async def test_a_stream_cannot_keep_a_length_that_is_no_longer_true() -> None:
    sent = await answer(start(SSE, (b"Content-Length", b"5"), (b"x", b"y")), chunk(DONE, more=False))
    assert sent[0]["headers"] == [SSE, (b"x", b"y")]


def told_by(event: bytes) -> Any:
    """What an event says beside its moves; bytes where it is no JSON."""
    try:
        found = json.loads(data_of(event))
    except ValueError:
        return event
    for holder in (found, found.get("response") or {}) if isinstance(found, dict) else ():
        (holder.get("usage") or {}).pop("ferry", None)
    return found


@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=8),
    crlf=st.booleans(),
    cuts=st.lists(st.integers(0, 700)),
    moves_after=st.lists(st.integers(0, 20), max_size=4),
)
async def test_however_the_stream_is_cut_it_says_the_same_and_every_move_once(
    events: list[bytes], crlf: bool, cuts: list[int], moves_after: list[int]
) -> None:
    stream = b"".join(events).replace(b"\n", b"\r\n" if crlf else b"\n")
    chunks = chunked(stream, cuts)
    steps: list[Step] = [start(SSE)]
    for number, piece in enumerate(chunks):
        steps += [move(at_token=number) for after in moves_after if after == number]
        steps.append(chunk(piece, more=number + 1 < len(chunks)))
    sent = await answer(*steps)
    out = EventSplitter().feed(b"".join(bodies(sent)))
    said = [event for event in out if not event.startswith(b": ferry")]
    expected = EventSplitter().feed(stream)
    assert [told_by(event) for event in said] == [told_by(event) for event in expected]
    happened = sorted(after for after in moves_after if after < len(chunks))
    comments = [event for event in out if event.startswith(b": ferry")]
    assert len(comments) <= len(happened)
    assert comments == [
        f": ferry move mode=kv reason=drain at_token={n} gap_ms=23.1\n\n".encode() for n in happened[: len(comments)]
    ]
    if chunks[-1].endswith(b"\n") or not happened:  # then something follows every move
        assert len(comments) == len(happened)
    assert [message["more_body"] for message in sent[1:]].count(False) == 1 and not sent[-1]["more_body"]


@pytest.mark.parametrize("cuts", [[], [10], [0, 3, 3, 40]])
async def test_a_whole_answer_tells_moves_in_its_usage(cuts: list[int]) -> None:
    body = json.dumps({"text": 'é\ud83d " \\', "logprob": -0.1234567890123, "usage": {"total_tokens": 9}}).encode()
    pieces = chunked(body, cuts)
    sent = await answer(
        start((b"Content-Length", str(len(body)).encode()), (b"x-request-id", b"7"), JSON),
        move(),
        move("replay", at_token=4, gap_s=0.5),
        *(chunk(piece, more=n + 1 < len(pieces)) for n, piece in enumerate(pieces)),
    )
    sent_start, sent_body = sent
    expected = json.loads(body)
    expected["usage"]["ferry"] = FERRY
    assert json.loads(sent_body["body"]) == expected
    assert sent_start["headers"] == [
        (b"x-request-id", b"7"),
        JSON,
        (b"content-length", str(len(sent_body["body"])).encode()),
    ]


@pytest.mark.parametrize("body", [b'{"status":"queued","usage":null}', b"[]", b'{"usage": {', b"", b'[{"usage": {}}]'])
async def test_an_answer_without_usage_stays_as_it_is(body: bytes) -> None:
    sent = await answer(start(JSON), move(), chunk(body, more=False))
    assert bodies(sent) == [body]
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body)).encode()


@pytest.mark.parametrize(
    "begin",
    [
        start(JSON, status=400),
        start(JSON, (b"content-encoding", b"gzip")),
        start((b"content-type", b"text/plain")),
        start(),
    ],
)
async def test_what_cannot_hold_a_report_passes(begin: Message) -> None:
    messages = [begin, chunk(b'{"usage": {}}'), chunk(b"", more=False)]
    sent = await answer(*messages)
    assert all(got is given for got, given in zip(sent, messages, strict=True))
