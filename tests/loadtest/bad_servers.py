"""Servers that behave badly in one way each, on a real socket: what they answer is decided by path."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.loadtest.builders import HEAD, LAST_CHUNK, chunk, delta, event, usage

CHAT, MODELS, METRICS, TOKENIZE = "/v1/chat/completions", "/v1/models", "/metrics", "/tokenize"
PIECE = b"x" * 65_536


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[bool]]
"""Writes an answer; True if the connection can carry another one."""


class BadServer:
    """Answers as `routes` says, and 404 elsewhere. `asked` holds what came, over how many `connections`."""

    def __init__(self, routes: dict[str, Answer]) -> None:
        self.routes = {MODELS: whole({"data": [{"id": "m"}]}), **routes}
        self.asked: list[Asked] = []
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._serving: set[asyncio.Task[None]] = set()

    def __enter__(self) -> BadServer:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close_the_door(self) -> None:
        """No new connection from now on; those that are open are cut."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            while True:
                asked = await _request(reader)
                self.asked.append(asked)
                if not await self.routes.get(asked.path, refused(404, "no such route"))(asked, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._serving.discard(task)
            writer.transport.abort()


async def _request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def raw(data: bytes, status: int = 200, kind: str = "application/json", more: str = "") -> Answer:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, head + data)
        return True

    return answer


def whole(tree: Any, status: int = 200) -> Answer:
    return raw(json.dumps(tree).encode(), status)


def refused(status: int, message: str) -> Answer:
    return whole({"error": {"message": message, "type": "Refused", "code": status}}, status)


def streams(*events: Any, end: bytes = LAST_CHUNK, pause_s: float = 0.0) -> Answer:
    """These events as a stream; `end` b"" cuts it there."""

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, HEAD)
        for one in events:
            await asyncio.sleep(pause_s)
            await _write(writer, chunk(one if isinstance(one, bytes) else event(one)))
        await _write(writer, end)
        return bool(end)

    return answer


def good(tokens: int = 3, pause_s: float = 0.0) -> Answer:
    said = [delta(content="a") for _ in range(tokens)]
    return streams(*said, delta("stop"), usage(tokens), "[DONE]", pause_s=pause_s)


def says_nothing() -> Answer:
    """Takes the request, and that is all."""
    return drips(b"", every_s=3600)


def drips(piece: bytes = b" ", every_s: float = 0.05, head: bytes = b"") -> Answer:
    """A little, again and again, without an end."""

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, head)
        while True:
            await _write(writer, piece)
            await asyncio.sleep(every_s)

    return answer


def floods(head: bytes, piece: bytes = PIECE) -> Answer:
    """As much as the reader takes, without an end."""
    return drips(piece, 0.0, head)


def closing(inner: Answer) -> Answer:
    """The same, and the connection ends with it."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        await inner(asked, writer)
        return False

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One after the other, the last for all that follow."""
    left = list(answers)

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        return await (left.pop(0) if len(left) > 1 else left[0])(asked, writer)

    return answer
