"""Where an HTTP/1.1 response ends, and which of its bytes are body. Pure.

The same walk serves twice: while the run goes on it only finds the end (no `body` sink: nothing is copied), and after
the run it takes the body out. RFC 9112 is followed strictly; what breaks it raises BadHttp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

MAX_HEAD_BYTES = 65_536
MAX_CHUNK_LINE_BYTES = 4_096

_HEAD_END = b"\r\n\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNK_LINE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?)?\r?")
_LINE_END = b"\r\n"


class BadHttp(Exception):
    """Bytes that are no HTTP/1.1 response."""


class _State(Enum):
    HEAD = auto()
    CHUNKS = auto()
    TRAILERS = auto()
    LENGTH = auto()
    UNTIL_CLOSE = auto()
    ENDED = auto()


class Framing:
    """Walks over one response, fed piece by piece, cut anywhere."""

    __slots__ = ("_body", "_left", "_rest", "_state", "closes", "headers", "status", "surplus")

    def __init__(self, body: Callable[[bytes], None] | None = None) -> None:
        self._body = body
        self._state = _State.HEAD
        self._rest = b""  # the begun head, chunk line or trailers
        self._left = 0  # of the body, or of a chunk and its line end, in bytes
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.closes = False
        """True if the connection cannot be used again."""
        self.surplus = False
        """True if bytes followed the end: nobody asked for them, so the connection cannot be trusted."""

    @property
    def ended(self) -> bool:
        return self._state is _State.ENDED

    def feed(self, data: bytes) -> bool:
        """Take the next piece; True once the response has ended.

        Raises:
            BadHttp: and the connection is of no use any more.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        if self._state is _State.HEAD:
            at = self._take_heads(data)
        if self._state is _State.CHUNKS:
            at = self._walk_chunks(data, at)
        if self._state is _State.TRAILERS:
            at = self._take_trailers(data, at)
        elif self._state is _State.LENGTH:
            at = self._take_length(data, at)
        elif self._state is _State.UNTIL_CLOSE:
            if self._body and at < len(data):
                self._body(data[at:])
            return False
        if self._state is _State.ENDED:
            self.surplus = self.surplus or at < len(data)
            return True
        return False

    def close(self) -> bool:
        """The peer closed; True if that is where this response ends."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.ENDED
        return self.ended

    def _take_heads(self, data: bytes) -> int:
        """The head, and any interim (1xx) heads before it."""
        at = 0
        while self._state is _State.HEAD:
            end = data.find(_HEAD_END, at)
            if end < 0:
                if len(data) - at > MAX_HEAD_BYTES:
                    raise BadHttp(f"no end of the head within {MAX_HEAD_BYTES} bytes")
                if not b"HTTP/1.".startswith(data[at : at + 7]):
                    raise BadHttp(f"not an HTTP/1 status line: {data[at : at + 40]!r}")
                self._rest = data[at:]
                return len(data)
            self._read_head(data[at : end + 2])
            at = end + 4
        return at

    def _read_head(self, head: bytes) -> None:
        line = _STATUS_LINE.match(head)
        if line is None:
            raise BadHttp(f"not an HTTP/1 status line: {head[:40]!r}")
        status, at = int(line[2]), line.end()
        headers: dict[bytes, bytes] = {}
        while at < len(head):
            found = _FIELD.match(head, at)
            if found is None:
                raise BadHttp(f"not a header field: {head[at : at + 40]!r}")
            headers[found[1].lower()] = found[2]
            at = found.end()
        if 100 <= status < 200 and status != 101:
            return
        self.status, self.headers = status, headers
        connection = headers.get(b"connection", b"").lower()
        self.closes = b"close" in connection or (line[1] == b"0" and b"keep-alive" not in connection)
        self._choose_body(status, headers)

    def _choose_body(self, status: int, headers: dict[bytes, bytes]) -> None:
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if status in (204, 304):
            self._state = _State.ENDED
        elif coding is not None:
            if coding.lower() != b"chunked":
                raise BadHttp(f"transfer coding {coding!r} was not asked for")
            self._state = _State.CHUNKS
        elif length is not None:
            if not length.isdigit():
                raise BadHttp(f"content-length is {length!r}")
            self._left = int(length)
            self._state = _State.LENGTH
        else:
            self.closes = True
            self._state = _State.UNTIL_CLOSE

    def _walk_chunks(self, data: bytes, at: int) -> int:
        size, left, body = len(data), self._left, self._body
        while at < size:
            if left:
                end = min(at + left, size)
                if body and left > 2:
                    body(data[at : min(at + left - 2, size)])
                if at + left - 2 < end:
                    _check_line_end(data, at, left, end)
                left -= end - at
                at = end
                continue
            line = _CHUNK_LINE.match(data, at)
            if line is None:
                self._hold_chunk_line(data[at:])
                at = size
                break
            at = line.end()
            left = int(line[1], 16)
            if left == 0:
                self._state = _State.TRAILERS
                break
            left += 2
        self._left = left
        return at

    def _hold_chunk_line(self, begun: bytes) -> None:
        if len(begun) > MAX_CHUNK_LINE_BYTES or _CHUNK_LINE_BEGUN.fullmatch(begun) is None:
            raise BadHttp(f"not a chunk size: {begun[:40]!r}")
        self._rest = begun

    def _take_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(_LINE_END, at):
            self._state = _State.ENDED
            return at + 2
        end = data.find(_HEAD_END, at)
        if end >= 0:
            self._state = _State.ENDED
            return end + 4
        if len(data) - at > MAX_HEAD_BYTES:
            raise BadHttp(f"no end of the trailers within {MAX_HEAD_BYTES} bytes")
        self._rest = data[at:]
        return len(data)

    def _take_length(self, data: bytes, at: int) -> int:
        end = min(at + self._left, len(data))
        if self._body and end > at:
            self._body(data[at:end])
        self._left -= end - at
        if not self._left:
            self._state = _State.ENDED
        return end


def _check_line_end(data: bytes, at: int, left: int, end: int) -> None:
    """The last two of the `left` bytes from `at` are a line end; of them, those before `end` are here."""
    found = data[max(at, at + left - 2) : end]
    wanted = _LINE_END[max(0, 2 - left) :]
    if not wanted.startswith(found):
        raise BadHttp(f"a chunk ends in {found!r} and not in a line end")
