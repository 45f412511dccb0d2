"""What Ferry tells of moves reaches the record, the file and the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtest.moves import Moves, ToldMove, told_move, total_of
from loadtest.reading import read_exchange
from loadtest.report import as_json, build
from loadtest.results import read_records, save
from loadtest.types import Ending, Outcome, Record
from serving.contexts.move_log import MoveRecord
from serving.gateway.move_report import comment_of, summary
from tests.loadtest.builders import HEAD, LAST_CHUNK, MS, chunk, delta, event, exchange, job, usage
from tests.loadtest.test_results import START_NS, result, some

MOVES = [
    MoveRecord(mode="kv", reason="drain", at_token=2, gap_s=0.0231, recomputed_tokens=0),
    MoveRecord(mode="replay", reason="engine_lost", at_token=3, gap_s=0.4, recomputed_tokens=40),
]


def read(reads: list[tuple[float, bytes]], ending: Ending = Ending.COMPLETE) -> Record:
    return read_exchange(exchange(reads, ending), job(), stall_ms=1000, keep_text=True)


def streamed(*, cut: bool = False) -> list[tuple[float, bytes]]:
    """A stream as the gateway writes it: comments just before the chunk that follows a move, a summary in the usage."""
    reads = [
        (100.0, HEAD + chunk(event(delta(content="a")))),
        (150.0, chunk(comment_of(MOVES[0]) + event(delta(content="b")))),
        (600.0, chunk(comment_of(MOVES[1]) + event(delta(content="c", finish=None)))),
    ]
    if cut:
        return reads
    told = usage(3)
    told["usage"]["ferry"] = summary(MOVES)
    return [
        *reads,
        (610.0, chunk(event(delta(finish="stop"))) + chunk(event(told)) + chunk(event("[DONE]")) + LAST_CHUNK),
    ]


def test_a_stream_tells_of_its_moves_as_the_gateway_writes_them() -> None:
    found = read(streamed())
    assert found.ok and found.text == "abc" and found.moves is not None
    assert (found.moves.kv, found.moves.replay, found.moves.recomputed_tokens) == (1, 1, 40)
    assert found.moves.gap_ms == (23.1, 400.0)
    assert found.moves.told == (
        ToldMove(150 * MS, "kv", "drain", 2, 23.1),
        ToldMove(600 * MS, "replay", "engine_lost", 3, 400.0),
    )
    assert len(found.event_ns) == 3, "comments are no tokens"


def test_a_stream_that_broke_only_has_its_comments() -> None:
    found = read(streamed(cut=True), Ending.RESET)
    assert found.outcome is Outcome.CUT and found.moves is not None
    assert (found.moves.kv, found.moves.replay, found.moves.recomputed_tokens) == (1, 1, None)


def test_a_whole_answer_only_has_the_usage() -> None:
    body: dict[str, Any] = {"id": "r1", "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], **usage(1)}
    body["choices"] = [{"message": {"content": "a"}, "finish_reason": "stop"}]
    body["usage"]["ferry"] = summary(MOVES)
    data = event(body).removeprefix(b"data: ").strip()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
    found = read([(50.0, head + data)])
    assert found.moves == Moves(1, 1, (23.1, 400.0), 40)


def test_no_moves_and_nothing_told_are_two_things() -> None:
    stayed = streamed()
    stayed[1] = (150.0, chunk(event(delta(content="b"))))
    stayed[2] = (600.0, chunk(event(delta(content="c"))))
    told = usage(3)
    told["usage"]["ferry"] = summary([])
    stayed[3] = (610.0, chunk(event(delta(finish="stop"))) + chunk(event(told)) + chunk(event("[DONE]")) + LAST_CHUNK)
    found = read(stayed)
    assert found.moves is not None and found.moves.count == 0
    silent = [*stayed[:3], (610.0, chunk(event(delta(finish="stop"))) + chunk(event("[DONE]")) + LAST_CHUNK)]
    assert read(silent).moves is None


def test_other_comments_are_no_moves() -> None:
    assert told_move(b"ferry move mode=kv", 1) is None and told_move(b"keep-alive", 1) is None


def test_moves_come_back_from_the_file_and_are_summed_in_the_report(tmp_path: Path) -> None:
    moves = Moves(1, 2, (5.0, 7.5, 90.0), 12, (ToldMove(START_NS + 7 * MS, "kv", "drain", 3, 5.0),))
    made = result(some(3))
    records = (
        replace(made.records[0], moves=moves),
        replace(made.records[1], moves=Moves(0, 0, (), 0)),
        made.records[2],
    )
    made = replace(made, records=records)
    saved = save(made, build(made), tmp_path)
    back = read_records(saved.records_file)
    assert back[0].moves == replace(moves, told=(replace(moves.told[0], told_ns=7 * MS),))
    assert back[1].moves == Moves(0, 0, (), 0) and back[2].moves is None
    tree = as_json(build(made), made)
    assert tree["moves"] == {
        "requests": 1, "kv": 1, "replay": 0, "gap_max_ms": 5.0, "handovers": 0, "unexplained": 2,
        "recomputed_tokens": 12,
        "reasons": {"drain kv": 1},
    }  # fmt: skip
    assert as_json(build(result(some(3))), result(some(3)))["moves"] is None and total_of([]) is None


def test_the_hand_over_after_the_prefill_is_no_disturbance() -> None:
    told = (ToldMove(1, "kv", "prefill_done", 1, 300.0), ToldMove(2, "replay", "engine_lost", 9, 80.0))
    total = total_of([Moves(1, 1, (300.0, 80.0), 50, told), Moves(1, 0, (250.0,), 0, told[:1]), None])
    assert total is not None and (total.requests, total.kv, total.replay, total.handovers) == (1, 0, 1, 2)
    assert total.gap_max_ms == 80.0 and total.reasons == {"engine_lost replay": 1, "prefill_done kv": 2}
    assert total_of([Moves(1, 0, (250.0,), 0, told[:1])]).gap_max_ms is None  # type: ignore[union-attr]
