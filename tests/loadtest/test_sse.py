"""Events out of bytes that end anywhere."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import Event, EventReader
from tests.loadtest.test_framing import pieces_of

lines = st.lists(
    st.one_of(
        st.text("ab: é", max_size=6).map(lambda text: f"data: {text}"),
        st.text("ab: ", max_size=6).map(lambda text: f"data:{text}"),
        st.just("data"),
        st.text("xy", max_size=4).map(lambda text: f": {text}"),
        st.just("event: token"),
        st.just("id: 3"),
        st.just("unknown"),
        st.just(""),
    ),
    max_size=20,
)


def read(pieces: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)] + reader.close()


def as_the_specification_says(text: str) -> list[Event]:
    """The WHATWG algorithm, line by line, on the whole text."""
    events, data, comments, name = [], list[str](), list[str](), ""
    for line in re.split("\r\n|\n|\r", text.removeprefix("\ufeff"))[:-1]:
        if not line:
            if data or comments:
                events.append(Event("\n".join(data).encode(), name.encode(), "\n".join(comments).encode()))
            data, comments, name = [], [], ""
        elif line.startswith(":"):
            comments.append(line[1:].removeprefix(" "))
        else:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
    return events


@given(lines, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.lists(st.integers(0)))
def test_events_are_those_of_the_specification_however_they_are_cut(
    written: list[str], line_end: str, mark: bool, cuts: list[int]
) -> None:
    text = ("\ufeff" if mark else "") + "".join(line + line_end for line in written)
    assert read(pieces_of(text.encode(), cuts)) == as_the_specification_says(text)


@given(st.binary(max_size=120), st.lists(st.integers(0)))
def test_any_bytes_give_the_same_events_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert read(pieces_of(data, cuts)) == read([data])


def test_an_event_that_does_not_end_is_no_event() -> None:
    reader = EventReader()
    assert reader.feed(b"data: whole\n\ndata: half") == [Event(b"whole")]
    assert reader.close() == [] and reader.rest == b"data: half"


def test_a_line_end_of_two_bytes_may_be_cut_in_two() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\r\n\r") == []
    assert reader.feed(b"\n: moved\r\n\r\n") == [Event(b"a"), Event(b"", comment=b"moved")]
