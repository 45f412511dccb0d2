"""Readers of traces that hold one request, or one session, per line. Pure.

A line that cannot be used is left out and told of; it does not end the reading.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from loadtest.traces.types import BadLine, Trace, TraceRequest

# Mooncake's conversation trace has its times in bins of 3 s: replayed as they are, they would be false bursts.
MOONCAKE_BIN_S = 3.0
MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16

_AZURE_FRACTION_DIGITS = 6  # of a second; it writes seven, and Python reads six

Row = Mapping[str, Any]


class _BadRow(Exception):
    """A row that says nothing usable."""


def azure(lines: Iterable[str], _rng: np.random.Generator) -> Trace:
    """`TIMESTAMP,ContextTokens,GeneratedTokens`: Azure's LLM inference traces of 2023 and 2024."""

    def request(row: Row) -> TraceRequest:
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        fraction = fraction.removesuffix("+00:00")[:_AZURE_FRACTION_DIGITS] or "0"
        at = datetime.fromisoformat(f"{whole.removesuffix('+00:00')}.{fraction:0<6}+00:00")
        return TraceRequest(at.timestamp(), _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"]))

    return _from_zero(_each(_csv_rows(lines), request))


def burstgpt(lines: Iterable[str], _rng: np.random.Generator) -> Trace:
    """BurstGPT: `Timestamp` in seconds, `Model`, `Request tokens`, `Response tokens`, in later versions `Session ID`.

    Responses of 0 tokens are failures of the recorded service; a load cannot repeat them.
    """

    def request(row: Row) -> TraceRequest:
        output_tokens = _tokens(row["Response tokens"])
        if output_tokens == 0:
            raise _BadRow("a failed request: no response tokens")
        return TraceRequest(
            _seconds(row["Timestamp"]),
            _tokens(row["Request tokens"]),
            output_tokens,
            session=(row.get("Session ID") or "").strip(),
            model=row.get("Model") or "",
        )

    return _number_turns(_from_zero(_each(_csv_rows(lines), request)))


def mooncake(lines: Iterable[str], rng: np.random.Generator) -> Trace:
    """Mooncake's JSONL, `timestamp` in ms. Each request is moved to a random place within its bin of 3 s."""

    def request(row: Row) -> TraceRequest:
        return TraceRequest(
            _seconds(row["timestamp"]) / 1e3,
            _tokens(row["input_length"]),
            _tokens(row["output_length"]),
            block_ids=tuple(row.get("hash_ids", ())),
            block_tokens=MOONCAKE_BLOCK_TOKENS,
        )

    trace = _each(_json_rows(lines), request)
    if _is_binned(trace.requests):
        shifts = rng.uniform(0.0, MOONCAKE_BIN_S, len(trace.requests))
        moved = (replace(one, at_s=one.at_s + float(shift)) for one, shift in zip(trace.requests, shifts, strict=True))
        trace = Trace(tuple(moved), trace.bad_lines)
    return _from_zero(trace)


def bailian(lines: Iterable[str], _rng: np.random.Generator) -> Trace:
    """Qwen-Bailian's JSONL: `timestamp` in seconds; `parent_chat_id` strings the turns of a conversation together."""
    root_of: dict[Any, Any] = {}

    def request(row: Row) -> TraceRequest:
        chat = row["chat_id"]
        parent = row.get("parent_chat_id", -1)
        root = root_of.get(parent, chat) if parent not in (-1, None) else chat
        root_of[chat] = root
        return TraceRequest(
            _seconds(row["timestamp"]),
            _tokens(row["input_length"]),
            _tokens(row["output_length"]),
            session=str(root),
            block_ids=tuple(row.get("hash_ids", ())),
            block_tokens=BAILIAN_BLOCK_TOKENS,
        )

    return _number_turns(_from_zero(_each(_json_rows(lines), request)))


def weka(lines: Iterable[str], _rng: np.random.Generator) -> Trace:
    """WEKA's sessions of a coding agent, one JSON object per line. Each sub-agent is a session of its own.

    Sessions of the corpus were recorded apart: all begin at 0, and it is the load's part to spread them out.
    """
    requests: list[TraceRequest] = []
    bad: list[BadLine] = []
    for number, row in _json_rows(lines):
        try:
            if isinstance(row, _BadRow):
                raise row
            requests += _weka_session(str(row["id"]), row["requests"], int(row["block_size"]), begin_s=0.0)
        except (_BadRow, KeyError, TypeError, ValueError) as error:
            bad.append(BadLine(number, _told(error)))
    return Trace(tuple(sorted(requests, key=lambda one: one.at_s)), tuple(bad))


def _weka_session(session: str, rows: Iterable[Row], block_tokens: int, begin_s: float) -> list[TraceRequest]:
    requests: list[TraceRequest] = []
    turn = 0
    for number, row in enumerate(rows):
        at_s = begin_s + _seconds(row["t"])
        if row["type"] == "subagent":
            requests += _weka_session(f"{session}/{row.get('agent_id', number)}", row["requests"], block_tokens, at_s)
            continue
        requests.append(
            TraceRequest(
                at_s,
                _tokens(row["in"]),
                _tokens(row["out"]),
                session=session,
                turn=turn,
                think_s=_seconds(row.get("think_time", 0.0)) if turn else None,
                block_ids=tuple(row["hash_ids"]),
                block_tokens=block_tokens,
                model=str(row.get("model", "")),
                streamed=row["type"] == "s",
            )
        )
        turn += 1
    return requests


READERS: Mapping[str, Callable[[Iterable[str], np.random.Generator], Trace]] = MappingProxyType(
    {"azure": azure, "bailian": bailian, "burstgpt": burstgpt, "mooncake": mooncake, "weka": weka}
)


def guess_format(first_line: str) -> str:
    """The format that a file with this first line has; empty if it is none that we know."""
    if "ContextTokens" in first_line:
        return "azure"
    if "Request tokens" in first_line:
        return "burstgpt"
    if '"chat_id"' in first_line:
        return "bailian"
    if '"block_size"' in first_line and '"requests"' in first_line:
        return "weka"
    return "mooncake" if '"input_length"' in first_line else ""


def _each(rows: Iterable[tuple[int, Row | _BadRow]], request: Callable[[Row], TraceRequest]) -> Trace:
    requests: list[TraceRequest] = []
    bad: list[BadLine] = []
    for number, row in rows:
        try:
            if isinstance(row, _BadRow):
                raise row
            requests.append(request(row))
        except (_BadRow, KeyError, TypeError, ValueError, AttributeError) as error:
            bad.append(BadLine(number, _told(error)))
    return Trace(tuple(requests), tuple(bad))


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(lines)
    for row in reader:
        yield reader.line_num, row


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Row | _BadRow]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except msgspec.MsgspecError as error:
            yield number, _BadRow(f"no JSON: {error}")
            continue
        yield number, row if isinstance(row, dict) else _BadRow("no JSON object")


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < 1e12:
        raise _BadRow(f"{value!r} is no time")
    return seconds


def _tokens(value: Any) -> int:
    tokens = int(value)
    if tokens < 0:
        raise _BadRow(f"{value!r} is no number of tokens")
    return tokens


def _from_zero(trace: Trace) -> Trace:
    """Sorted, and the first request at 0."""
    if not trace.requests:
        return trace
    ordered = sorted(trace.requests, key=lambda one: one.at_s)
    begin_s = ordered[0].at_s
    return Trace(tuple(replace(one, at_s=one.at_s - begin_s) for one in ordered), trace.bad_lines)


def _number_turns(trace: Trace) -> Trace:
    """Count the turns of each session in order of time."""
    turns: dict[str, int] = {}
    numbered = []
    for one in trace.requests:
        turn = turns.get(one.session, 0) if one.session else 0
        turns[one.session] = turn + 1
        numbered.append(replace(one, turn=turn))
    return Trace(tuple(numbered), trace.bad_lines)


def _is_binned(requests: Sequence[TraceRequest]) -> bool:
    """True if many share an instant and the instants are a bin apart, give or take some milliseconds."""
    instants = sorted({one.at_s for one in requests})
    apart_s = min((later - sooner for sooner, later in itertools.pairwise(instants)), default=MOONCAKE_BIN_S)
    return len(instants) < len(requests) and apart_s > 0.99 * MOONCAKE_BIN_S


def _told(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
