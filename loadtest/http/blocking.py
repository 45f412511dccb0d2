"""One exchange after the other over a blocking socket, each bounded in time and in size as a whole.

A socket's own timeout bounds one read: a server that sends a byte now and then would never meet it.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import NamedTuple

from loadtest.http.address import Address
from loadtest.http.framing import BadHttp, Framing

READ_BYTES = 65_536


class Answer(NamedTuple):
    """Names of headers are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class BlockingConnection:
    """Kept open between two exchanges; a new one after each failure. Close it."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, *, max_body_bytes: int) -> None:
        self._address = address
        self._tls = tls
        self._max_body_bytes = max_body_bytes
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes, within_s: float) -> Answer:
        """Send a whole request and wait for its whole answer.

        Raises:
            OSError: nobody is there, or the answer was not whole after `within_s`; BadHttp: it is none, or too long.
        """
        until_s = time.perf_counter() + within_s
        if self._socket is not None and _is_quiet(self._socket):
            try:
                return self._exchange(self._socket, request, until_s)
            except ConnectionError:
                self.close()  # the server closed it while it was idle, as it may
        self.close()
        return self._exchange(self._connect(until_s), request, until_s)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, until_s: float) -> socket.socket:
        bare = socket.create_connection((self._address.host, self._address.port), timeout=_left_s(until_s))
        try:
            if self._tls is not None:
                bare.settimeout(_left_s(until_s))
                bare = self._tls.wrap_socket(bare, server_hostname=self._address.host)
        except OSError:
            bare.close()
            raise
        self._socket = bare
        return bare

    def _exchange(self, connection: socket.socket, request: bytes, until_s: float) -> Answer:
        body = _Body(self._max_body_bytes)
        framing = Framing(body.take)
        try:
            connection.settimeout(_left_s(until_s))
            connection.sendall(request)
            while not framing.ended:
                connection.settimeout(_left_s(until_s))
                data = connection.recv(READ_BYTES)
                if not data:
                    if not framing.close():
                        raise ConnectionError("the connection was closed before the answer's end")
                    break
                framing.feed(data)
        except (OSError, BadHttp):
            self.close()
            raise
        if framing.closes or framing.surplus:
            self.close()
        return Answer(framing.status, framing.headers, b"".join(body.parts))


class _Body:
    """Takes no more than it may."""

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = self._max_bytes = max_bytes
        self.parts: list[bytes] = []

    def take(self, part: bytes) -> None:
        self._left_bytes -= len(part)
        if self._left_bytes < 0:
            raise BadHttp(f"the answer is longer than {self._max_bytes >> 20} MiB")
        self.parts.append(part)


def _is_quiet(connection: socket.socket) -> bool:
    """Bytes that nobody asked for, or an end, make an idle connection useless."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def _left_s(until_s: float) -> float:
    left_s = until_s - time.perf_counter()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
