"""A relay between the load and the server, which can be made slow. It runs in a process of its own.

The load connects to it instead of the server, and still speaks of the server: TLS and its names pass through. Where the
server cannot be reached, the relay can only hang up: such requests count as cut, and not as without a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from multiprocessing.connection import Connection as Pipe

from loadtest.drill.slowness import Link, Slowness
from loadtest.http.address import parse_base_url
from loadtest.processes import Child
from loadtest.types import LoadTestError
from loadtest.worker import run_on_loop

READ_BYTES = 1 << 16
# What is on its way and not yet at the other end: more is not read, as a full socket would not be.
ON_THE_WAY = 256

Chunk = tuple[float, bytes]


class Relay:
    """A `with` block around the load; `port` is of this machine."""

    def __init__(self, base_url: str) -> None:
        """Raises LoadTestError for a base URL that is of no use."""
        address = parse_base_url(base_url)
        self._server = (address.host, address.port)

    def __enter__(self) -> Relay:
        self._child = Child(run_relay)
        self._child.send(self._server)
        try:
            self.port = int(self._child.recv())
        except EOFError as error:
            told = self._child.how_it_ended()
            self._child.stop()
            raise LoadTestError(f"the relay that a slow network needs did not start: {told}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def slow(self, slowness: Slowness) -> bool:
        """False if the relay is gone."""
        return self._child.send(slowness)


def run_relay(pipe: Pipe) -> None:
    """The child: told the server's host and port, it answers with its own port, and then is told how slow to be."""
    host, port = pipe.recv()
    run_on_loop(lambda: _relay(pipe, host, port))


async def _relay(pipe: Pipe, host: str, port: int) -> None:
    up, down = Link(), Link()
    over = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(_carry(reader, far_writer, up))
            both.create_task(_carry(far_reader, writer, down))

    def told() -> None:
        try:
            up.slowness = down.slowness = pipe.recv()
        except EOFError:
            over.set()

    asyncio.get_running_loop().add_reader(pipe.fileno(), told)
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await over.wait()
    server.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """One direction of one connection, until its end; the end too takes its time."""
    way: asyncio.Queue[Chunk] = asyncio.Queue(ON_THE_WAY)
    arriving = asyncio.create_task(_arrive(way, writer))
    now_s = asyncio.get_running_loop().time
    data = b"-"
    while data:
        try:
            data = await reader.read(READ_BYTES)
        except OSError:
            data = b""
        await way.put((link.arrives_s(now_s(), len(data)), data))
    await arriving


async def _arrive(way: asyncio.Queue[Chunk], writer: asyncio.StreamWriter) -> None:
    now_s, data, gone = asyncio.get_running_loop().time, b"-", False
    while data:
        arrives_s, data = await way.get()
        if arrives_s > now_s():
            await asyncio.sleep(arrives_s - now_s())
        if data and not gone:
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                gone = True  # what still comes has nowhere to go, and must not fill the way
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()
