"""Server-sent events as bytes: whole events come out of chunks that end anywhere, and no byte is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.sse import EventSplitter, comment, data_of, with_data
from tests.serving.chunks import chunked

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=12)
FIELD = st.sampled_from(["data: ", "data:", "event: ", ": ", "id: ", ""])
EVENT = st.builds(
    lambda lines, ending: "".join(f"{field}{line}{ending}" for field, line in lines).encode() + ending.encode(),
    st.lists(st.tuples(FIELD, LINE), min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n"]),
)


@given(events=st.lists(EVENT, max_size=6), tail=LINE, cuts=st.lists(st.integers(0, 300)))
def test_events_are_the_same_however_the_stream_is_cut(events: list[bytes], tail: str, cuts: list[int]) -> None:
    splitter, found = EventSplitter(), []
    for chunk in chunked(b"".join(events) + tail.encode(), cuts):
        found += splitter.feed(chunk)
    assert found == events
    assert splitter.rest() == tail.encode() and splitter.rest() == b""


@given(
    stream=st.lists(st.sampled_from([b"\r", b"\n", b"a", b"data:"])).map(b"".join), cuts=st.lists(st.integers(0, 60))
)
def test_no_byte_is_lost_and_cuts_do_not_matter(stream: bytes, cuts: list[int]) -> None:
    whole, cut = EventSplitter(), EventSplitter()
    events = [event for chunk in chunked(stream, cuts) for event in cut.feed(chunk)]
    assert events == whole.feed(stream)
    assert b"".join(events) + cut.rest() == stream


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a": 1}\n\n', b'{"a": 1}'),
        (b"event: x\ndata:1\nid: 7\n\n", b"1"),
        (b"data: 1\ndata:  2\n\n", b"1\n 2"),
        (b"data: 1\r\ndata\r\n\r\n", b"1\n"),
        (b": data: 1\nevent: data\ndatabase: 3\n\n", b""),
    ],
)
def test_data_is_read_as_browsers_do(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


@pytest.mark.parametrize(
    ("event", "changed"),
    [
        (b"data: 1\n\n", b"data: new\n\n"),
        (b"event: x\ndata:1\nid: 7\n\n", b"event: x\ndata: new\nid: 7\n\n"),
        (b"data: 1\nid: 7\ndata: 2\n\n", b"data: new\nid: 7\n\n"),
        (b"event: x\r\ndata: 1\r\n\r\n", b"event: x\r\ndata: new\r\n\r\n"),
    ],
)
def test_data_is_put_in_place_and_the_rest_stays(event: bytes, changed: bytes) -> None:
    assert with_data(event, b"new") == changed
    assert data_of(changed) == b"new"


def test_a_comment_is_an_event_without_data() -> None:
    assert comment("ferry move") == b": ferry move\n\n"
    assert EventSplitter().feed(comment("x") + b"data: 1\n\n") == [b": x\n\n", b"data: 1\n\n"]
    assert data_of(comment("x")) == b""
