"""ZMQ's sockets as the channel uses them, in memory, with every message in the test's hands.

A connection is two ways, each first in, first out. A way delivers at once unless it is held; then it delivers when
told. A connection that breaks loses what is under way in both directions, as TCP's does.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import zmq

Message = list[bytes]


class Watcher(Protocol):
    """Sees all messages between the clients and engines of one test."""

    def sent(self, message: Message) -> None:
        """A client has sent it; whether it arrives is another matter."""

    def arrived(self, message: Message) -> None:
        """It is in a client's mailbox."""

    def lost(self, message: Message) -> None:
        """It will never arrive, or never be read."""


class Way:
    """One direction of a connection."""

    def __init__(self, deliver: Callable[[Message], None]) -> None:
        self._deliver = deliver
        self.waiting: deque[Message] = deque()
        self.held = False

    def send(self, message: Message) -> None:
        self.waiting.append(message)
        if not self.held:
            self.deliver(len(self.waiting))

    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            self._deliver(self.waiting.popleft())

    def let_go(self) -> None:
        self.held = False
        self.deliver(len(self.waiting))


class Connection:
    """From one dealer to one address, whether or not an engine listens there."""

    def __init__(self, wire: Wire, peer: bytes, address: str, dealer: MemoryDealer) -> None:
        self.wire, self.peer, self.address, self._dealer = wire, peer, address, dealer
        self.open = True
        self.to_engine = Way(self._into_router)
        self.to_client = Way(self._into_dealer)
        self.to_engine.held = address not in wire.routers

    def _into_router(self, message: Message) -> None:
        router = self.wire.routers.get(self.address)
        if router is None:
            self.wire.watcher.lost(message)
        else:
            router.mailbox.put_nowait([self.peer, *message])

    def _into_dealer(self, message: Message) -> None:
        self.wire.watcher.arrived(message)
        self._dealer.mailbox.put_nowait(message)

    def hang_up(self) -> None:
        """The client closes its end. What it sent still arrives; nothing comes back any more."""
        self.open = False
        self._drop(self.to_client)
        while not self._dealer.mailbox.empty():
            self.wire.watcher.lost(self._dealer.mailbox.get_nowait())

    def break_down(self) -> None:
        """Lose what is under way, and tell the client's monitor."""
        if self.open:
            self.open = False
            self._drop(self.to_client)
            self._dealer.monitor.disconnected(self.address)
        self._drop(self.to_engine)
        self.to_engine.held = True

    def _drop(self, way: Way) -> None:
        while way.waiting:
            self.wire.watcher.lost(way.waiting.popleft())


class Wire:
    """All connections."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.routers: dict[str, MemoryRouter] = {}
        self.connections: list[Connection] = []

    def context(self) -> MemoryContext:
        return MemoryContext(self)

    def to(self, address: str) -> list[Connection]:
        """The connections to an address over which something may still come."""
        return [c for c in self.connections if c.address == address and (c.open or c.to_engine.waiting)]

    def connect(self, address: str, dealer: MemoryDealer) -> Connection:
        connection = Connection(self, b"peer-%d" % len(self.connections), address, dealer)
        self.connections.append(connection)
        return connection

    def unplug(self, address: str) -> None:
        """The process that listens there dies."""
        self.routers.pop(address, None)
        for connection in self.to(address):
            connection.break_down()

    def reply(self, router: MemoryRouter, peer: bytes, message: Message) -> None:
        mine = (c for c in self.connections if c.peer == peer and c.open)
        connection = next(mine, None)
        if connection is None or self.routers.get(connection.address) is not router:
            self.watcher.lost(message)
        else:
            connection.to_client.send(message)


class MemoryContext:
    """Stands where `zmq.asyncio.Context` stood."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def socket(self, kind: int) -> MemoryRouter | MemoryDealer:
        return MemoryRouter(self._wire) if kind == zmq.ROUTER else MemoryDealer(self._wire)

    def destroy(self, linger: int | None = None) -> None:
        return None


class MemoryRouter:
    """An engine's socket. Security options may be set on it; there is nothing to secure."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.mailbox: asyncio.Queue[Message] = asyncio.Queue()

    def bind_to_random_port(self, host: str) -> int:
        port = 1 + len(self._wire.routers)
        while f"{host}:{port}" in self._wire.routers or self._wire.to(f"{host}:{port}"):
            port += 1
        self._wire.routers[f"{host}:{port}"] = self
        return port

    async def recv_multipart(self, copy: bool = True) -> Message:
        return await self.mailbox.get()

    async def send_multipart(self, frames: list[Any], copy: bool = True) -> None:
        self._wire.reply(self, frames[0], [bytes(frame) for frame in frames[1:]])


class MemoryDealer:
    """A client's socket."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.mailbox: asyncio.Queue[Message] = asyncio.Queue()
        self.monitor = MemoryMonitor()
        self._connection: Connection | None = None
        self.closed = False

    def get_monitor_socket(self, _events: int) -> MemoryMonitor:
        return self.monitor

    def disable_monitor(self) -> None:
        return None

    def connect(self, address: str) -> None:
        self._connection = self._wire.connect(address, self)

    async def recv_multipart(self, copy: bool = True) -> Message:
        return await self.mailbox.get()

    async def send_multipart(self, frames: list[Any], flags: int = 0, copy: bool = True) -> None:
        assert self._connection is not None
        message = [bytes(frame) for frame in frames]
        self._wire.watcher.sent(message)
        if self._connection.open:
            self._connection.to_engine.send(message)
        else:
            self._wire.watcher.lost(message)

    def close(self, linger: int | None = None) -> None:
        self.closed = True
        if self._connection is not None and self._connection.open:
            self._connection.hang_up()


class MemoryMonitor:
    """Tells of the one event that the channel asks for."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Message] = asyncio.Queue()

    def disconnected(self, address: str) -> None:
        self._events.put_nowait([struct.pack("=hi", zmq.EVENT_DISCONNECTED, 0), address.encode()])

    async def recv_multipart(self, _flags: int = 0) -> Message:
        return await self._events.get()

    def close(self, linger: int | None = None) -> None:
        return None


class OpenDoor:
    """Stands where ZMQ's authenticator stood: in memory there are no strangers."""

    def __init__(self, _context: Any) -> None:
        return None

    def start(self) -> None:
        return None

    def configure_curve_callback(self, **_options: Any) -> None:
        return None

    def stop(self) -> None:
        return None
