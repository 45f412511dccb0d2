"""Recorded traffic: the text of a trace file as a Recording. Each format is one function from a line to a row.

A trace with a gap (a line without its fields, a silence longer than the trace's `max_gap_s`) is refused: planning
on it would be planning for less traffic than there was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NoReturn, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from planner.types import PlannerError

T = TypeVar("T")

TraceFormat = Literal["azure", "burstgpt", "mooncake", "ferry"]
FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Recording:
    """Requests in the order they came: seconds from the first one, and lengths in tokens.

    `shared_tokens` is what a prefix cache that forgets nothing would have held of the prompt.
    """

    arrival_s: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    shared_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """From the first arrival to one mean gap after the last, so that replays can follow each other."""
        last_s = float(self.arrival_s[-1])
        return last_s * len(self) / (len(self) - 1)

    @property
    def mean_rate_rps(self) -> float:
        return len(self) / self.span_s


@dataclass(frozen=True)
class _Row:
    at_s: float
    isl: int
    osl: int
    blocks: tuple[int, ...] = ()


def recording_from(lines: Iterable[str], *, trace_format: TraceFormat, file: str, max_gap_s: float) -> Recording:
    """The recording in the lines of a trace file. Raises PlannerError naming the line of the first gap or bad row."""
    rows: list[_Row] = []
    for line, row in _rows(lines, trace_format, file):
        if row.isl <= 0 or row.osl <= 0:
            _bad_line(file, line, f"{row.isl} prompt and {row.osl} answer tokens", "both must be above 0")
        if rows and row.at_s < rows[-1].at_s:
            _bad_line(file, line, row.at_s, "it is earlier than the line before it; sort the trace by time")
        if rows and row.at_s - rows[-1].at_s > max_gap_s:
            gap_s = row.at_s - rows[-1].at_s
            raise PlannerError(
                file,
                f"line {line}",
                f"{gap_s:.1f} s",
                f"the trace has a gap: nothing came for longer than max_gap_s = {max_gap_s:g}",
                "cut the trace before or after the gap, or raise max_gap_s if that silence was real",
            )
        rows.append(row)
    if len(rows) < 2 or rows[-1].at_s == rows[0].at_s:
        raise PlannerError(file, "", None, "has fewer than two arrival times", "give a longer trace")
    return Recording(
        arrival_s=np.array([row.at_s - rows[0].at_s for row in rows]),
        isl=np.array([row.isl for row in rows], dtype=np.int64),
        osl=np.array([row.osl for row in rows], dtype=np.int64),
        shared_tokens=np.array(list(_shared_tokens(rows)), dtype=np.int64),
    )


def _rows(lines: Iterable[str], trace_format: TraceFormat, file: str) -> Iterator[tuple[int, _Row]]:
    """Rows with their line numbers, from 1."""
    if trace_format == "mooncake":
        for at, line in enumerate(lines, start=1):
            if line.strip():
                yield at, _parsed(_mooncake, line, file, at)
        return
    read = {"azure": _azure, "burstgpt": _burstgpt, "ferry": _ferry}[trace_format]
    table = csv.DictReader(lines)
    for cells in table:
        yield table.line_num, _parsed(read, cells, file, table.line_num)


def _parsed(read: Callable[[T], _Row], found: T, file: str, line: int) -> _Row:
    try:
        return read(found)
    except KeyError as error:
        _bad_line(file, line, None, f"it has no {error.args[0]}; is `format` right?")
    except (TypeError, ValueError, OverflowError):
        _bad_line(file, line, str(found)[:80], "a field is missing or is not a number")


def _azure(cells: Mapping[str, str]) -> _Row:
    # Seven digits after the point, one more than datetime reads.
    at = datetime.fromisoformat(cells["TIMESTAMP"][:26])
    return _Row((at - datetime(2000, 1, 1)).total_seconds(), int(cells["ContextTokens"]), int(cells["GeneratedTokens"]))


def _burstgpt(cells: Mapping[str, str]) -> _Row:
    return _Row(_seconds(cells["Timestamp"]), int(cells["Request tokens"]), int(cells["Response tokens"]))


def _ferry(cells: Mapping[str, str]) -> _Row:
    return _Row(_seconds(cells["arrival_s"]), int(cells["isl"]), int(cells["osl"]))


def _mooncake(line: str) -> _Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    blocks = tuple(int(block) for block in row.get("hash_ids", ()))
    return _Row(_seconds(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"]), blocks)


def _seconds(value: str | float) -> float:
    seconds = float(value)
    if not np.isfinite(seconds):
        raise ValueError("not a time")
    return seconds


def _shared_tokens(rows: Iterable[_Row]) -> Iterator[int]:
    """Of each prompt, the leading blocks that came before; an equal block id means an equal prompt up to there."""
    seen: set[int] = set()
    for row in rows:
        known = 0
        while known < len(row.blocks) and row.blocks[known] in seen:
            known += 1
        seen.update(row.blocks)
        yield min(known * MOONCAKE_BLOCK_TOKENS, row.isl - 1)


def _bad_line(file: str, line: int, value: object, problem: str) -> NoReturn:
    raise PlannerError(file, f"line {line}", value, problem, f"correct line {line} of {file}, or leave it out")
