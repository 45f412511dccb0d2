"""One connection: it sends a request, notes when each read came, and finds the end. Nothing else happens here."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import cast

from loadtest.http.framing import BadHttp, Framing
from loadtest.types import Ending, Exchange

NowNs = Callable[[], int]


class Flight:
    """A request under way. `freeze` makes an Exchange of it when it has ended."""

    __slots__ = (
        "answer_bytes",
        "connect_ns",
        "connection",
        "detail",
        "due_ns",
        "end_ns",
        "ending",
        "held_ns",
        "number",
        "pieces",
        "read_ns",
        "request",
        "resent",
        "reused",
        "send_ns",
    )

    def __init__(self, number: int, request: bytes, due_ns: int, held_ns: int = 0) -> None:
        self.number = number
        self.request = request
        self.due_ns = due_ns
        self.held_ns = held_ns
        self.connect_ns = 0
        self.send_ns = 0
        self.end_ns = 0
        self.ending: Ending | None = None
        self.detail = ""
        self.reused = False
        self.resent = False
        self.connection: Connection | None = None
        self.answer_bytes = 0
        self.read_ns: list[int] = []
        self.pieces: list[bytes] = []

    def freeze(self) -> Exchange:
        assert self.ending is not None, "the flight has not ended"
        return Exchange(
            number=self.number,
            ending=self.ending,
            detail=self.detail,
            due_ns=self.due_ns,
            held_ns=self.held_ns,
            send_ns=self.send_ns,
            end_ns=self.end_ns,
            reused=self.reused,
            resent=self.resent,
            read_ns=self.read_ns,
            pieces=self.pieces,
            connect_ns=self.connect_ns,
        )


class Connection(asyncio.Protocol):
    """Carries one flight at a time. Tells `released` when a flight has ended; `usable` says if it can carry another."""

    __slots__ = ("_fd", "_flight", "_framing", "_max_bytes", "_now_ns", "_released", "_transport", "_used", "usable")

    def __init__(self, now_ns: NowNs, released: Callable[[Connection, Flight], None], *, max_bytes: int) -> None:
        """`max_bytes` of one answer at most: one that goes on ends its flight."""
        self._max_bytes = max_bytes
        self._now_ns = now_ns
        self._released = released
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._flight: Flight | None = None
        self._framing = Framing()
        self._used = False
        self.usable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport.get_extra_info("sslcontext") is None:
            self._fd = sock.fileno()

    def send(self, flight: Flight) -> None:
        """Hand the request to the socket now: `send_ns` is the instant just before."""
        assert self._transport is not None and self._flight is None
        self._flight = flight
        self._framing = Framing()
        flight.connection = self
        flight.reused, self._used = self._used, True
        request = flight.request
        flight.send_ns = self._now_ns()
        if self._fd >= 0:
            # An event loop may put writes off until all due requests were handled. The transport's own buffer is empty
            # here, since one flight goes out at a time, so the socket can be written to directly.
            try:
                request = request[os.write(self._fd, request) :]
            except BlockingIOError:
                pass
            except OSError as error:
                # The reader sees the same break, but perhaps later than the next flight needs to know.
                self._end(Ending.RESET, _told(error))
                return
        if request:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now_ns = self._now_ns()
        flight = self._flight
        if flight is None:
            self.abort()  # nobody asked for these bytes
            return
        flight.read_ns.append(now_ns)
        flight.pieces.append(data)
        flight.answer_bytes += len(data)
        try:
            ended = self._framing.feed(data)
        except BadHttp as error:
            self._end(Ending.BAD_HTTP, str(error))
            return
        if flight.answer_bytes > self._max_bytes:
            self._end(Ending.TOO_LONG, f"longer than {self._max_bytes / 2**20:g} MiB (--max-answer-mib)")
        elif ended:
            self._end(Ending.COMPLETE, "", keep=not self._framing.closes and not self._framing.surplus)

    def eof_received(self) -> bool:
        return False  # close our side as well: `connection_lost` comes next

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._fd = -1
        if self._flight is None:
            return
        if exc is not None:
            self._end(Ending.RESET, _told(exc))
        elif self._framing.close():
            self._end(Ending.COMPLETE, "")
        else:
            self._end(Ending.EOF, "")

    def give_up(self, ending: Ending, detail: str) -> None:
        """End the flight from our side; the connection goes with it."""
        if self._flight is not None:
            self._end(ending, detail)

    def abort(self) -> None:
        self.usable = False
        self._fd = -1
        if self._transport is not None:
            self._transport.abort()

    def _end(self, ending: Ending, detail: str, *, keep: bool = False) -> None:
        flight = self._flight
        assert flight is not None
        self._flight = None
        flight.connection = None
        flight.ending, flight.detail = ending, detail
        flight.end_ns = flight.read_ns[-1] if ending is Ending.COMPLETE and flight.read_ns else self._now_ns()
        if not keep:
            self.abort()
        self._released(self, flight)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
