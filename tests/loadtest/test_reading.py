"""Each kind of answer, from its bytes to its record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.reading import read_exchange
from loadtest.types import Ending, Exchange, Flag, Outcome, Record
from tests.loadtest.builders import HEAD, LAST_CHUNK, MS, chunk, delta, event, exchange, job, stream, usage
from tests.loadtest.test_framing import pieces_of


def read(found: Exchange) -> Record:
    return read_exchange(found, job(), stall_ms=1000, keep_text=True)


endings = st.sampled_from([Ending.COMPLETE, Ending.EOF, Ending.RESET, Ending.TIMED_OUT])

WHOLE = stream(
    (5, delta(role="assistant", content="")),
    (200, delta(content="a")),
    (250, delta(content="b")),
    (300, delta(content="c", finish="stop")),
    (300, usage(3)),
    (301, "[DONE]"),
    end_ms=302,
)


def plain(status: int, body: bytes, content_type: str = "application/json") -> list[tuple[float, bytes]]:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return [(40, head.encode() + body)]


def test_the_first_token_is_not_the_role_and_the_last_not_the_usage() -> None:
    record = read(exchange(WHOLE, due_ms=-10, send_ms=1))
    assert record.outcome is Outcome.OK and not record.flags and record.text == "abc"
    assert record.ttft_ns == 210 * MS and record.ttft_net_ns == 199 * MS and record.lag_ns == 11 * MS
    assert record.e2e_ns == 310 * MS and record.end_ns == 302 * MS
    assert record.tpot_ns == 50 * MS and list(record.gaps_ns) == [50 * MS, 50 * MS]
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (5, 3, "stop")


@given(st.lists(st.integers(0)))
def test_how_the_bytes_are_cut_changes_nothing_but_times(cuts: list[int]) -> None:
    data = b"".join(piece for _, piece in WHOLE)
    record = read(exchange([(float(n), piece) for n, piece in enumerate(pieces_of(data, cuts))]))
    assert (record.outcome, record.text, len(record.event_ns), record.output_tokens) == (Outcome.OK, "abc", 3, 3)


@pytest.mark.parametrize(
    "words",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"reasoning": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
    ],
)
def test_content_reasoning_and_tool_calls_are_tokens(words: dict[str, Any]) -> None:
    events = ((5, delta(role="assistant", content="")), (9, delta(**words)), (9, delta("stop")), (9, "[DONE]"))
    assert read(exchange(stream(*events))).first_ns == 9 * MS


def test_an_empty_text_with_token_ids_or_a_grown_count_is_a_token_too() -> None:
    """Half of a character has no text yet, but a token was made."""
    by_id = {"choices": [{"index": 0, "text": "", "token_ids": [5]}]}
    by_count = {"choices": [{"index": 0, "text": ""}], "usage": {"completion_tokens": 2}}
    last = {"choices": [{"index": 0, "text": "é", "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
    first = {"choices": [{"index": 0, "text": "", "token_ids": [4]}], "usage": {"completion_tokens": 1}}
    record = read(exchange(stream((1, first), (2, by_count), (3, last), (3, "[DONE]"))))
    assert list(record.event_ns) == [1 * MS, 2 * MS, 3 * MS] and record.output_tokens == 3
    record = read(exchange(stream((1, by_id), (2, by_id), (2, delta("stop")), (2, "[DONE]"))))
    assert list(record.event_ns) == [1 * MS, 2 * MS] and record.output_tokens == 2


def test_bundles_count_their_tokens_once() -> None:
    four = delta(content="w x y z")
    events = [(200.0 + 50 * n, four) for n in range(16)]
    record = read(exchange(stream(*events, (950, usage(64)), (950, "[DONE]"))))
    assert record.flags == (Flag.FIRST_TOKENS_GUESSED,) and record.first_tokens == 4
    assert record.tpot_ns == 12.5 * MS and set(record.gaps_ns) == {50 * MS}


def test_continuous_usage_tells_the_tokens_of_the_first_event() -> None:
    def counted(tokens: int) -> dict[str, Any]:
        return {**delta(content="x"), "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}

    record = read(exchange(stream((100, counted(3)), (200, counted(5)), (200, delta("stop")), (200, "[DONE]"))))
    assert (record.first_tokens, record.output_tokens, record.flags) == (3, 5, ()) and record.tpot_ns == 50 * MS


def test_no_usage_and_no_done_are_flagged_and_not_failed() -> None:
    record = read(exchange(stream((100, delta(content="a")), (200, delta(content="b", finish="length")))))
    assert record.outcome is Outcome.OK and record.flags == (Flag.NO_USAGE, Flag.NO_DONE)
    assert record.output_tokens == 2 and record.tpot_ns == 100 * MS


def test_a_stall_is_flagged_in_answers_that_broke_too() -> None:
    reads = stream((100, delta(content="a")), (1200, delta(content="b")))[:-1]
    record = read(exchange(reads, Ending.RESET))
    assert record.outcome is Outcome.CUT and Flag.STALLED in record.flags


@pytest.mark.parametrize("ending", [Ending.EOF, Ending.RESET])
def test_a_stream_that_breaks_is_cut_and_keeps_what_came(ending: Ending) -> None:
    record = read(exchange(WHOLE[:3], ending))
    assert record.outcome is Outcome.CUT and record.ttft_net_ns == 199 * MS and record.text == "ab"
    assert record.detail == f"{ending.value} after 2 token events"


def test_a_stream_that_ends_well_but_too_soon_is_cut() -> None:
    record = read(exchange([*WHOLE[:3], (260, LAST_CHUNK)]))
    assert record.outcome is Outcome.CUT and "neither" in record.detail


def test_nothing_is_lost_when_the_connection_breaks_after_done() -> None:
    assert read(exchange(WHOLE[:-1], Ending.EOF)).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (429, Outcome.SHED),
        (503, Outcome.SHED),
        (500, Outcome.SERVER_ERROR),
        (502, Outcome.SERVER_ERROR),
        (400, Outcome.REJECTED),
        (401, Outcome.REJECTED),
        (404, Outcome.REJECTED),
        (307, Outcome.REJECTED),
    ],
)
def test_a_status_is_its_own_kind_and_tells_why(status: int, outcome: Outcome) -> None:
    body = b'{"error":{"message":"no such model","type":"invalid_request_error","code":"model_not_found"}}'
    record = read(exchange(plain(status, body)))
    assert record.outcome is outcome and record.status == status
    assert record.detail == f"{status} model_not_found: invalid_request_error: no such model"


def test_a_page_of_a_proxy_is_shown_as_it_is() -> None:
    record = read(exchange(plain(502, b"<html>Bad Gateway</html>", "text/html")))
    assert record.outcome is Outcome.SERVER_ERROR and record.detail == "502 <html>Bad Gateway</html>"


def test_an_error_within_a_stream_is_told() -> None:
    events = ((100, delta(content="a")), (150, {"error": {"message": "engine died", "code": 500}}), (150, "[DONE]"))
    record = read(exchange(stream(*events)))
    assert record.outcome is Outcome.STREAM_ERROR and record.detail == "500: engine died" and record.first_ns


@pytest.mark.parametrize(
    "reads",
    [
        stream((100, delta(content="a")), (150, "{half of an eve"), (150, "[DONE]")),
        [(100, HEAD + chunk(b"data: \xff\xfe\n\n") + chunk(event("[DONE]")) + LAST_CHUNK)],
        [(100, HEAD + chunk(event(delta(content="a")) + b"data: {") + LAST_CHUNK)],
        stream((100, {"choices": "none"}), (150, "[DONE]")),
        plain(200, b"<html>Welcome</html>", "text/html"),
        plain(200, b"{"),
    ],
)
def test_a_body_that_is_not_what_was_promised(reads: list[tuple[float, bytes]]) -> None:
    record = read(exchange(reads))
    assert record.outcome is Outcome.BAD_BODY and record.detail


def test_comments_are_no_tokens() -> None:
    reads = stream((100, delta(content="a")), (200, delta(content="b", finish="stop")), (200, "[DONE]"))
    reads.insert(1, (150, chunk(b": keep alive\n\n")))
    assert list(read(exchange(reads)).event_ns) == [100 * MS, 200 * MS]


def test_an_answer_without_a_token_is_empty() -> None:
    events = ((5, delta(role="assistant", content="")), (9, delta("stop")), (9, "[DONE]"))
    assert read(exchange(stream(*events))).outcome is Outcome.EMPTY


def test_an_answer_that_is_no_stream_has_only_its_whole_time() -> None:
    body = (
        b'{"id":"r1","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}'
    )
    record = read(exchange(plain(200, body)))
    assert record.outcome is Outcome.OK and record.text == "hi" and record.output_tokens == 2
    assert record.e2e_ns == 40 * MS and record.ttft_ns is None and record.tpot_ns is None


WHOLE_BODY = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("body", "ending", "outcome"),
    [
        (WHOLE_BODY, Ending.COMPLETE, Outcome.OK),
        (WHOLE_BODY[:-9], Ending.COMPLETE, Outcome.BAD_BODY),
        (WHOLE_BODY[:-9], Ending.RESET, Outcome.CUT),
        (WHOLE_BODY[:-9], Ending.TIMED_OUT, Outcome.TIMED_OUT),
    ],
)
def test_a_whole_answer_may_end_where_its_connection_is_closed(body: bytes, ending: Ending, outcome: Outcome) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    record = read(exchange([(40, head + body)], ending))
    assert record.outcome is outcome and record.text == ("hi" if outcome is Outcome.OK else "")


def test_a_null_is_as_good_as_a_missing_key() -> None:
    events = ((5, {**delta(content="a"), "id": None}), (9, delta("stop")), (9, {**usage(1), "choices": None}))
    record = read(exchange(stream(*events, (9, "[DONE]"))))
    assert record.outcome is Outcome.OK and (record.text, record.output_tokens, record.response_id) == ("a", 1, "r1")


def test_a_status_that_comes_as_a_stream_is_its_own_kind_too() -> None:
    (at_ms, first), *rest = stream((5, {"error": {"message": "too busy", "code": 503}}), (5, "[DONE]"))
    record = read(exchange([(at_ms, first.replace(b"200 OK", b"503 X")), *rest]))
    assert record.outcome is Outcome.SHED and record.detail == "503 503: too busy"


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (Ending.TIMED_OUT, Outcome.TIMED_OUT),
        (Ending.NO_CONNECTION, Outcome.NO_CONNECTION),
        (Ending.STOPPED, Outcome.UNFINISHED),
        (Ending.UNSENT, Outcome.UNSENT),
        (Ending.BAD_HTTP, Outcome.BAD_HTTP),
    ],
)
def test_what_the_socket_knows_is_its_own_kind(ending: Ending, outcome: Outcome) -> None:
    record = read(exchange([], ending, detail="because"))
    assert record.outcome is outcome and record.detail == "because" and record.ttft_ns is None


@given(st.binary(max_size=300), st.integers(0, 10_000), st.integers(0, 300), st.lists(st.integers(0)), endings)
def test_any_damage_to_an_answer_is_one_outcome_however_it_is_cut(
    damage: bytes, at: int, length: int, cuts: list[int], ending: Ending
) -> None:
    """A good answer with some bytes replaced: never an exception, and the same verdict for the same bytes."""
    whole = b"".join(piece for _, piece in WHOLE)
    at %= len(whole)
    data = whole[:at] + damage + whole[at + length :]
    found = [
        read(exchange([(float(n), piece) for n, piece in enumerate(pieces)], ending))
        for pieces in ([data], pieces_of(data, cuts))
    ]
    assert found[0].outcome is found[1].outcome and found[0].detail == found[1].detail
    assert found[0].text == found[1].text and found[0].output_tokens == found[1].output_tokens
    if found[0].outcome is not Outcome.OK:
        assert found[0].detail
