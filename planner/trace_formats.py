"""Readers of traces that hold one request, or one session, per line. Pure.

`trace_rows` gives the lines' requests as they stand in the file, and a BadLine for each that cannot be used: whether
that ends the reading is the caller's choice. `request_trace` leaves bad lines out, and makes of the others a trace that
can be replayed.
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

from planner.recorded import BadLine, RequestTrace, TraceRequest

# Mooncake's conversation trace has its times in bins of 3 s: replayed as they are, they would be false bursts.
MOONCAKE_BIN_S = 3.0
MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16

_AZURE_FRACTION_DIGITS = 6  # of a second; it writes seven, and Python reads six
_SHOWN_CHARS = 80  # of a line that is of no use

Row = Mapping[str, Any]
Reader = Callable[[Row], list[TraceRequest]]


class _BadRow(Exception):
    """A row that says nothing usable."""


def trace_rows(lines: Iterable[str], trace_format: str) -> Iterator[tuple[int, TraceRequest | BadLine]]:
    """Each request, in the file's order and with its times, and the number of its line from 1."""
    split, reader = _FORMATS[trace_format]
    read = reader()
    for number, row in split(lines):
        try:
            if isinstance(row, _BadRow):
                raise row
            found = read(row)
        except (_BadRow, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            yield number, BadLine(number, _told(error), str(row)[:_SHOWN_CHARS])
            continue
        for one in found:
            yield number, one


def request_trace(lines: Iterable[str], trace_format: str, rng: np.random.Generator) -> RequestTrace:
    """All that can be used, in order and from 0 on; Mooncake's bins are spread out, and turns counted."""
    requests: list[TraceRequest] = []
    bad: list[BadLine] = []
    for _, found in trace_rows(lines, trace_format):
        if isinstance(found, BadLine):
            bad.append(found)
        else:
            requests.append(found)
    if trace_format == "mooncake" and _is_binned(requests):
        shifts = rng.uniform(0.0, MOONCAKE_BIN_S, len(requests)).tolist()
        requests = [replace(one, at_s=one.at_s + shift) for one, shift in zip(requests, shifts, strict=True)]
    requests.sort(key=lambda one: one.at_s)
    if requests and trace_format != "weka":
        begin_s = requests[0].at_s
        requests = _with_turns(replace(one, at_s=one.at_s - begin_s) for one in requests)
    return RequestTrace(tuple(requests), tuple(bad))


def _azure(row: Row) -> list[TraceRequest]:
    """`TIMESTAMP,ContextTokens,GeneratedTokens`: Azure's LLM inference traces of 2023 and 2024."""
    whole, _, fraction = row["TIMESTAMP"].partition(".")
    fraction = fraction.removesuffix("+00:00")[:_AZURE_FRACTION_DIGITS] or "0"
    at = datetime.fromisoformat(f"{whole.removesuffix('+00:00')}.{fraction:0<6}+00:00")
    return [TraceRequest(at.timestamp(), _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"]))]


def _burstgpt(row: Row) -> list[TraceRequest]:
    """BurstGPT: `Timestamp` in seconds, `Model`, `Request tokens`, `Response tokens`, in later versions `Session ID`.

    Responses of 0 tokens are failures of the recorded service; a load cannot repeat them.
    """
    output_tokens = _tokens(row["Response tokens"])
    if output_tokens == 0:
        raise _BadRow("a failed request: no response tokens")
    return [
        TraceRequest(
            _seconds(row["Timestamp"]),
            _tokens(row["Request tokens"]),
            output_tokens,
            session=(row.get("Session ID") or "").strip(),
            model=row.get("Model") or "",
        )
    ]


def _ferry(row: Row) -> list[TraceRequest]:
    """Our own `arrival_s,isl,osl`."""
    return [TraceRequest(_seconds(row["arrival_s"]), _tokens(row["isl"]), _tokens(row["osl"]))]


def _mooncake(row: Row) -> list[TraceRequest]:
    """Mooncake's JSONL, `timestamp` in ms."""
    return [
        TraceRequest(
            _seconds(row["timestamp"]) / 1e3,
            _tokens(row["input_length"]),
            _tokens(row["output_length"]),
            block_ids=_blocks(row.get("hash_ids", ())),
            block_tokens=MOONCAKE_BLOCK_TOKENS,
        )
    ]


def _bailian() -> Reader:
    """Qwen-Bailian's JSONL: `timestamp` in seconds; `parent_chat_id` strings the turns of a conversation together."""
    root_of: dict[Any, Any] = {}

    def read(row: Row) -> list[TraceRequest]:
        chat = row["chat_id"]
        parent = row.get("parent_chat_id", -1)
        root = root_of.get(parent, chat) if parent not in (-1, None) else chat
        root_of[chat] = root
        return [
            TraceRequest(
                _seconds(row["timestamp"]),
                _tokens(row["input_length"]),
                _tokens(row["output_length"]),
                session=str(root),
                block_ids=_blocks(row.get("hash_ids", ())),
                block_tokens=BAILIAN_BLOCK_TOKENS,
            )
        ]

    return read


def _weka(row: Row) -> list[TraceRequest]:
    """WEKA's sessions of a coding agent, one JSON object per line. Each sub-agent is a session of its own.

    Sessions of the corpus were recorded apart: all begin at 0, and it is the load's part to spread them out.
    """
    return _weka_session(str(row["id"]), row["requests"], int(row["block_size"]), begin_s=0.0)


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
                block_ids=_blocks(row["hash_ids"]),
                block_tokens=block_tokens,
                model=str(row.get("model", "")),
                streamed=row["type"] == "s",
            )
        )
        turn += 1
    return requests


def guess_trace_format(first_line: str) -> str:
    """The format that a file with this first line has; empty if it is none that we know."""
    if "ContextTokens" in first_line:
        return "azure"
    if "Request tokens" in first_line:
        return "burstgpt"
    if '"chat_id"' in first_line:
        return "bailian"
    if '"block_size"' in first_line and '"requests"' in first_line:
        return "weka"
    if first_line.strip() == "arrival_s,isl,osl":
        return "ferry"
    return "mooncake" if '"input_length"' in first_line else ""


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
        raise _BadRow(f"{value!r} is not a number of seconds")
    return seconds


def _tokens(value: Any) -> int:
    tokens = int(value)
    if tokens < 0:
        raise _BadRow(f"{value!r} tokens: it should be above 0")
    return tokens


def _blocks(ids: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(block) for block in ids)


def _with_turns(requests: Iterable[TraceRequest]) -> list[TraceRequest]:
    """Count the turns of each session in order of time."""
    turns: dict[str, int] = {}
    numbered = []
    for one in requests:
        turn = turns.get(one.session, 0) if one.session else 0
        turns[one.session] = turn + 1
        numbered.append(replace(one, turn=turn))
    return numbered


def _is_binned(requests: Sequence[TraceRequest]) -> bool:
    """True if many share an instant and the instants are a bin apart, give or take some milliseconds."""
    instants = sorted({one.at_s for one in requests})
    apart_s = min((later - sooner for sooner, later in itertools.pairwise(instants)), default=MOONCAKE_BIN_S)
    return len(instants) < len(requests) and apart_s > 0.99 * MOONCAKE_BIN_S


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}; is `format` right?"
    return str(error) if isinstance(error, _BadRow) else f"a field is missing or is not a number: {error}"


def _always(reader: Reader) -> Callable[[], Reader]:
    """A reader that remembers nothing serves every file."""
    return lambda: reader


_Rows = Callable[[Iterable[str]], Iterator[tuple[int, Row | _BadRow]]]
_FORMATS: Mapping[str, tuple[_Rows, Callable[[], Reader]]] = MappingProxyType(
    {
        "azure": (_csv_rows, _always(_azure)),
        "bailian": (_json_rows, _bailian),
        "burstgpt": (_csv_rows, _always(_burstgpt)),
        "ferry": (_csv_rows, _always(_ferry)),
        "mooncake": (_json_rows, _always(_mooncake)),
        "weka": (_json_rows, _always(_weka)),
    }
)
TRACE_FORMATS = tuple(_FORMATS)
