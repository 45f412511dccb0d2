"""Where a response ends, whatever the pieces it comes in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.http.framing import BadHttp, Framing
from tests.loadtest.builders import HEAD, LAST_CHUNK, chunk

payloads = st.lists(st.binary(min_size=1, max_size=40) | st.just(b"\r\n0\r\n\r\n"), max_size=8)
chunk_lines = st.sampled_from([b"%x", b"%X", b"0%x", b"%x ;name=value", b"%x;a"])


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


def fed(pieces: list[bytes]) -> tuple[Framing, bytes, list[bool]]:
    body: list[bytes] = []
    framing = Framing(body.append)
    ended = [framing.feed(piece) for piece in pieces]
    return framing, b"".join(body), ended


@given(payloads, chunk_lines, st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"]), st.lists(st.integers(0)))
def test_chunks_end_at_their_last_byte_however_they_are_cut(
    parts: list[bytes], line: bytes, trailers: bytes, cuts: list[int]
) -> None:
    chunks = b"".join(line % len(part) + b"\r\n" + part + b"\r\n" for part in parts)
    pieces = pieces_of(HEAD + chunks + b"0\r\n" + trailers + b"\r\n", cuts)
    framing, body, ended = fed(pieces)
    assert body == b"".join(parts)
    assert ended == [False] * (len(pieces) - 1) + [True]
    assert framing.status == 200 and not framing.closes and not framing.surplus

    blind = Framing()  # as in the run, where nothing is copied
    assert [blind.feed(piece) for piece in pieces] == ended


@given(st.binary(max_size=60), st.lists(st.integers(0)))
def test_a_body_of_known_length_ends_with_it(payload: bytes, cuts: list[int]) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    pieces = pieces_of(head % len(payload) + payload, cuts)
    framing, body, ended = fed(pieces)
    assert body == payload and ended[-1] and not any(ended[:-1])
    assert framing.status == 404 and framing.closes


@given(st.binary(max_size=60), st.lists(st.integers(0)))
def test_without_a_length_the_close_ends_it(payload: bytes, cuts: list[int]) -> None:
    framing, body, ended = fed(pieces_of(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + payload, cuts))
    assert not any(ended) and framing.closes
    assert framing.close() and body == payload


def test_a_close_within_chunks_is_no_end() -> None:
    framing, body, _ = fed([HEAD + chunk(b"abc")])
    assert not framing.close() and body == b"abc"


def test_a_status_without_body_ends_with_its_head() -> None:
    framing, _, ended = fed([b"HTTP/1.1 204 No Content\r\n\r\n"])
    assert ended == [True] and not framing.closes


def test_bytes_behind_the_end_are_told() -> None:
    framing, body, ended = fed([HEAD + chunk(b"abc") + LAST_CHUNK + b"HTTP/1.1 200"])
    assert ended == [True] and framing.surplus and body == b"abc"


@given(st.lists(st.integers(0)))
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"xyz\r\n",
        HEAD + b"+5\r\nhello\r\n",
        HEAD + b"1_0\r\n",
        HEAD + b"3\r\nabcdef",
        HEAD + b"f" * 16 + b"\r\n",
    ],
)
def test_what_breaks_the_rules_is_found_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    with pytest.raises(BadHttp):
        fed(pieces_of(data, cuts))


def test_an_endless_head_is_not_collected_forever() -> None:
    framing = Framing()
    framing.feed(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(BadHttp, match="no end of the head"):
        for _ in range(100):
            framing.feed(b"X-Padding: " + b"a" * 1000 + b"\r\n")


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    for begin in (b"", HEAD, b"HTTP/1.1 200 OK\r\n"):
        try:
            fed([begin + data])
        except BadHttp:
            continue
