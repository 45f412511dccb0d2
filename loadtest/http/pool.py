"""Warm connections to one address: a flight takes an idle one, or a new one is opened for it."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.http.address import Address
from loadtest.http.connection import Connection, Flight, NowNs
from loadtest.types import Ending, LoadTestError

NO_SOCKET_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL})
# So many handshakes at once while warming up: a listen queue of the usual 128 must not overflow.
WARM_AT_ONCE = 64

Ended = Callable[[Flight], None]


@dataclass(slots=True)
class PoolCounts:
    """What the pool did while the run went on."""

    reused: int = 0
    resent: int = 0
    opened: int = 0
    failed_to_open: int = 0
    lacked_sockets: int = 0
    """Of those that failed to open: this process or machine had no socket left."""


class Pool:
    """Calls `ended` once for every flight, whatever becomes of it."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        *,
        relay_port: int | None = None,
        connect_timeout_s: float,
        max_answer_bytes: int,
        now_ns: NowNs,
        ended: Ended,
    ) -> None:
        self._address = address
        self._socket_address = (address.host, address.port) if relay_port is None else ("127.0.0.1", relay_port)
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._now_ns = now_ns
        self._ended = ended
        self._idle: list[Connection] = []
        self._opening: dict[asyncio.Task[None], Flight] = {}
        self.counts = PoolCounts()

    async def warm(self, connections: int) -> None:
        """Open connections ahead of the run. Raises LoadTestError if one cannot be had."""
        for begin in range(0, connections, WARM_AT_ONCE):
            several = [self._open() for _ in range(min(WARM_AT_ONCE, connections - begin))]
            try:
                self._idle += await asyncio.gather(*several)
            except (OSError, TimeoutError) as error:
                address = self._address
                raise LoadTestError(f"cannot connect to {address.authority}: {_told(error)}") from error

    def send(self, flight: Flight) -> None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.usable:
                connection.send(flight)
                return
        self._send_on_new(flight)

    def _send_on_new(self, flight: Flight) -> None:
        task = asyncio.get_running_loop().create_task(self._open_and_send(flight))
        self._opening[task] = flight
        task.add_done_callback(self._opening.pop)

    def close(self) -> None:
        """Close the idle connections; flights end through their own."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def give_up(self, flight: Flight, ending: Ending, detail: str) -> None:
        """End a flight from our side, wherever it is."""
        if flight.connection is not None:
            flight.connection.give_up(ending, detail)
            return
        for task, waiting in self._opening.items():
            if waiting is flight:
                task.cancel()
        self._fail(flight, ending, detail)

    async def _open_and_send(self, flight: Flight) -> None:
        begun_ns = self._now_ns()
        try:
            connection = await self._open()
        except (OSError, TimeoutError) as error:
            self.counts.failed_to_open += 1
            self.counts.lacked_sockets += isinstance(error, OSError) and error.errno in NO_SOCKET_LEFT
            self._fail(flight, Ending.NO_CONNECTION, _told(error))
            return
        self.counts.opened += 1
        if flight.ending is not None:
            connection.abort()
            return
        flight.connect_ns = self._now_ns() - begun_ns
        connection.send(flight)

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await loop.create_connection(
                lambda: Connection(self._now_ns, self._released, max_bytes=self._max_answer_bytes),
                *self._socket_address,
                ssl=self._tls,
                server_hostname=self._address.host if self._tls else None,
            )
        return connection

    def _released(self, connection: Connection, flight: Flight) -> None:
        if connection.usable:
            self._idle.append(connection)
        if _died_while_idle(flight):
            # Servers close idle connections when they like. The request crossed that on its way: send it again.
            self.counts.resent += 1
            flight.ending, flight.detail, flight.resent = None, "", True
            self._send_on_new(flight)
            return
        self.counts.reused += flight.reused
        self._ended(flight)

    def _fail(self, flight: Flight, ending: Ending, detail: str) -> None:
        if flight.ending is None:
            flight.ending, flight.detail, flight.end_ns = ending, detail, self._now_ns()
            self._ended(flight)


def _died_while_idle(flight: Flight) -> bool:
    broke = flight.ending in (Ending.EOF, Ending.RESET)
    return broke and flight.reused and not flight.read_ns and not flight.resent


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer to the handshake in time"
    return str(error) or type(error).__name__
