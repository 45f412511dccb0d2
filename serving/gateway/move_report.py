"""Tells a client that asks (`X-Ferry-Moves: 1`) of its request's moves: SSE comments, and `ferry` inside `usage`.

    : ferry move mode=kv reason=drain at_token=57 gap_ms=23.1

The comment comes before the next chunk after the move. Answers to everybody else pass untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from serving.contexts.move_log import MoveLog, MoveRecord, wanted_log
from serving.gateway.error_envelope import AsgiApp, Message, Receive, Scope, Send
from serving.gateway.sse import EventSplitter, comment, data_of, with_data

HEADER = b"x-ferry-moves"
# Cheap to test, and nothing in a string looks like it: there, quotes are escaped.
_SOME_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_ENDS_OF_RESPONSE = ("response.completed", "response.incomplete", "response.failed")


def comment_of(move: MoveRecord) -> bytes:
    """The SSE comment that tells of one move."""
    gap_ms = 1e3 * move.gap_s
    return comment(f"ferry move mode={move.mode} reason={move.reason} at_token={move.at_token} gap_ms={gap_ms:.1f}")


def summary(moves: list[MoveRecord]) -> dict[str, Any]:
    """The `ferry` object: how many moves by mode, each one's gap in ms, and the tokens that were computed again."""
    modes = [move.mode for move in moves]
    return {
        "moves": len(moves),
        "kv": modes.count("kv"),
        "replay": modes.count("replay"),
        "gap_ms": [round(1e3 * move.gap_s, 1) for move in moves],
        "recomputed_tokens": sum(move.recomputed_tokens for move in moves),
    }


def with_summary(
    body: bytes, moves: list[MoveRecord], usage_of: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> bytes:
    """A JSON body with the moves inside the usage that `usage_of` finds; the same bytes when there is none."""
    if _SOME_USAGE.search(body) is None:
        return body
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return body
    usage = usage_of(found) if isinstance(found, dict) else None
    if usage is None:
        return body
    usage["ferry"] = summary(moves)
    return json.dumps(found, separators=(",", ":")).encode()


def usage_of_answer(answer: dict[str, Any]) -> dict[str, Any] | None:
    """Where a whole answer tells its usage; every route has it in the same place."""
    return _mapping(answer.get("usage"))


def final_usage_of_event(event: dict[str, Any]) -> dict[str, Any] | None:
    """Where the last event that tells usage has it; None for every other event, also those that count on the way."""
    kind = event.get("type")
    if kind in _ENDS_OF_RESPONSE:
        return _mapping((_mapping(event.get("response")) or {}).get("usage"))
    # vLLM sends the usage of chats and completions in a chunk without choices.
    if kind == "message_delta" or event.get("choices") == []:
        return _mapping(event.get("usage"))
    return None


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


class MoveReport:
    """ASGI middleware: gives requests on `routes` whose client asks for it a `MoveLog`, and shows it in the answer."""

    def __init__(self, app: AsgiApp, *, routes: Collection[str]):
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_wanted(scope):
            return await self._app(scope, receive, send)
        log = MoveLog()
        token = wanted_log.set(log)
        try:
            await self._app(scope, receive, _Telling(log, send))
        finally:
            wanted_log.reset(token)
        return None

    def _is_wanted(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["path"] in self._routes
            and any(name.lower() == HEADER and value.strip() == b"1" for name, value in scope["headers"])
        )


class _Telling:
    """The `send` of one request. Streams go on event by event; a JSON answer is held back until it is whole."""

    def __init__(self, log: MoveLog, send: Send):
        self._log, self._send = log, send
        self._events: EventSplitter | None = None
        self._told = 0
        self._held_start: Message | None = None
        self._held_body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._events is not None:
            await self._stream(self._events, message)
        elif self._held_start is not None:
            await self._hold(self._held_start, message)
        else:
            await self._send(message)

    async def _begin(self, start: Message) -> None:
        headers = {name.lower(): value for name, value in start.get("headers", ())}
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        readable = start["status"] < 400 and b"content-encoding" not in headers
        if readable and kind == b"application/json":
            self._held_start = start
            return
        if readable and kind == b"text/event-stream":
            self._events = EventSplitter()
            start = {**start, "headers": _without_length(start)}
        await self._send(start)

    async def _stream(self, splitter: EventSplitter, message: Message) -> None:
        last = not message.get("more_body", False)
        events = splitter.feed(message.get("body", b""))
        moves = self._log.completed
        out = [with_final_summary(event, moves) for event in events]
        if last and (rest := splitter.rest()):
            out.append(rest)
        if out:
            out[:0] = [comment_of(move) for move in moves[self._told :]]
            self._told = len(moves)
        if out or last:
            await self._send({**message, "body": b"".join(out)})

    async def _hold(self, start: Message, message: Message) -> None:
        self._held_body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = with_summary(self._held_body, self._log.completed, usage_of_answer)
        length = (b"content-length", str(len(body)).encode())
        await self._send({**start, "headers": [*_without_length(start), length]})
        await self._send({**message, "body": body})


def with_final_summary(event: bytes, moves: list[MoveRecord]) -> bytes:
    """An SSE event, with the moves if it is the one that tells the final usage."""
    if _SOME_USAGE.search(event) is None:
        return event
    data = data_of(event)
    told = with_summary(data, moves, final_usage_of_event)
    return event if told == data else with_data(event, told)


def _without_length(start: Message) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in start.get("headers", ()) if name.lower() != b"content-length"]
