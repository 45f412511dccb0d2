"""Server-sent events, cut out of bytes that end anywhere. Pure.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines end with LF, CRLF or CR.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """What stood between two blank lines. Comments alone make an event without data, which readers ignore."""

    data: bytes
    name: bytes = b""
    comment: bytes = b""


class EventReader:
    """Takes bytes piece by piece; gives the events that are whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._long: list[bytes] = []  # further pieces of a line that has not ended
        self._data: list[bytes] = []
        self._comments: list[bytes] = []
        self._name = b""
        self._began = False

    def feed(self, piece: bytes) -> list[Event]:
        if self._began and not self._rest.endswith(b"\r") and b"\n" not in piece and b"\r" not in piece:
            self._long.append(piece)  # joined once: a server may send megabytes without a line end
            return []
        text = b"".join((self._rest, *self._long, piece))
        self._long.clear()
        if not self._began:
            if len(text) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(text):
                self._rest = text
                return []
            self._began = True
            text = text.removeprefix(_BYTE_ORDER_MARK)
        # A CR at the end may be half of a CRLF: it waits for the next byte.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = lines.pop() + held
        events = []
        for line in lines:
            if line:
                self._take_field(line)
            elif self._data or self._comments:
                events.append(self._dispatch())
            else:
                self._name = b""
        return events

    def close(self) -> list[Event]:
        """The stream ended: only a CR that waited can still end an event. An unended one stays in `rest`."""
        return self.feed(b"\n") if self._rest.endswith(b"\r") else []

    @property
    def rest(self) -> bytes:
        """What follows the last whole event."""
        return b"\n".join([*self._data, *self._comments, b"".join((self._rest, *self._long))])

    def _take_field(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif colon and not name:
            self._comments.append(value)

    def _dispatch(self) -> Event:
        event = Event(b"\n".join(self._data), self._name, b"\n".join(self._comments))
        self._data, self._comments, self._name = [], [], b""
        return event
