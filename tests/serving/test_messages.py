"""The message interface: what is packed comes back; anything else is malformed and nothing worse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.messages import HEADERS, Add, Call, Gone, Kind, MalformedMessage, Reply, Step, Welcome, pack, unpack
from serving.types import Load
from tests.fakes import engine_info

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
COUNT = st.integers(0, 2**40)
LOADS = st.builds(Load, running=COUNT, waiting=COUNT, kv_usage=st.floats(0, 1))
MESSAGES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.HELLO: st.none(),
    Kind.ADD: st.builds(Add, st.text(), COUNT, st.booleans()),
    Kind.ABORT: st.lists(st.text()),
    Kind.CALL: st.builds(Call, COUNT, st.text(), st.lists(PLAIN, max_size=3)),
    Kind.PING: st.none(),
    Kind.BYE: st.none(),
    Kind.WELCOME: st.builds(Welcome, st.text(), st.builds(engine_info, st.text())),
    Kind.STEP: st.builds(Step, LOADS),
    Kind.LOAD: st.builds(Step, LOADS),
    Kind.REPLY: st.builds(Reply, COUNT, PLAIN, st.none() | st.text()),
    Kind.GONE: st.builds(Gone, st.text()),
}
ANY_MESSAGE = st.sampled_from(list(Kind)).flatmap(lambda kind: st.tuples(st.just(kind), MESSAGES[kind]))


def test_every_kind_has_a_header() -> None:
    assert set(MESSAGES) == set(HEADERS) == set(Kind)


@given(message=ANY_MESSAGE, payload=st.lists(st.binary(), max_size=3))
def test_what_is_packed_comes_back(message: tuple[Kind, Any], payload: list[bytes]) -> None:
    kind, header = message
    assert unpack(pack(kind, header, payload)) == (kind, header, payload)


@given(frames=st.lists(st.binary(max_size=40), max_size=4))
def test_random_frames_are_malformed_at_worst(frames: list[bytes]) -> None:
    try:
        kind, _, payload = unpack(frames)
    except MalformedMessage:
        return
    assert kind in Kind and payload == frames[2:]


@given(kind=st.sampled_from(list(Kind)), header=st.binary(max_size=60), tail=st.binary(max_size=3))
def test_random_headers_are_malformed_at_worst(kind: Kind, header: bytes, tail: bytes) -> None:
    try:
        unpack([bytes((kind,)) + tail, header])
    except MalformedMessage:
        return


@given(message=ANY_MESSAGE, data=st.data())
def test_a_damaged_message_is_malformed_at_worst(message: tuple[Kind, Any], data: st.DataObject) -> None:
    first, header = pack(*message)
    at = data.draw(st.integers(0, len(header) - 1))
    damaged = header[:at] + data.draw(st.binary(max_size=2)) + header[at + data.draw(st.integers(0, 2)) :]
    try:
        unpack([first, damaged])
    except MalformedMessage:
        return


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"", b"\xc0"],
        [b"\x03"],
        [b"\x00", b"\xc0"],
        [b"\x07", b"\xc0"],
        [bytes((Kind.ABORT,)), b"\x91\x01"],
        [bytes((Kind.HELLO,)), b"\x01"],
        [bytes((Kind.CALL,)), b"\x93\x01\xa1a" + b"\x91" * 100_000],
        [bytes((Kind.CALL,)), b"\x93\x01\xa1a\xdd\xff\xff\xff\xff"],
        [bytes((Kind.REPLY,)), b"\x92\x01\x81\x80\x01"],
    ],
)
def test_malformed(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        unpack(frames)
