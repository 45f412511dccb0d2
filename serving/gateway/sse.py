"""Server-sent events as bytes: cut a stream into whole events, read an event's data, put other data in its place.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines end with LF or CRLF.
"""

from __future__ import annotations

import re

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"[^\n]*\n?")
_DATA = re.compile(rb"data:? ?")


class EventSplitter:
    """Takes chunks that end anywhere; gives whole events, each with the blank line that ends it."""

    def __init__(self) -> None:
        self._rest = b""
        self._searched = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now. All bytes come out again, here or from `rest`, in their order."""
        self._rest += chunk
        events, begin = [], 0
        # A blank line is four bytes at most, so it may have begun in what was searched before.
        end = _BLANK_LINE.search(self._rest, max(0, self._searched - 3))
        while end is not None:
            events.append(self._rest[begin : end.end()])
            begin = end.end()
            end = _BLANK_LINE.search(self._rest, begin)
        self._rest = self._rest[begin:]
        self._searched = len(self._rest)
        return events

    def rest(self) -> bytes:
        """What follows the last whole event; the splitter forgets it."""
        rest, self._rest, self._searched = self._rest, b"", 0
        return rest


def data_of(event: bytes) -> bytes:
    """The event's data, its lines joined by LF."""
    lines = [line.rstrip(b"\r\n") for line in _LINE.findall(event)]
    return b"\n".join(_DATA.sub(b"", line, count=1) for line in lines if _is_data(line))


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with this data, which holds no line end, instead of its own; every other line stays."""
    assert b"\n" not in data and b"\r" not in data
    lines = _LINE.findall(event)
    first = next(n for n, line in enumerate(lines) if _is_data(line))
    others = [line for line in lines[first:] if not _is_data(line)]
    ending = b"\r\n" if lines[first].endswith(b"\r\n") else b"\n"
    return b"".join([*lines[:first], b"data: " + data + ending, *others])


def comment(text: str) -> bytes:
    """A block that clients ignore."""
    return f": {text}\n\n".encode()


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"
