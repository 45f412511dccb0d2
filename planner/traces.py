"""Recorded traffic: the text of a trace file as a Recording.

A trace with a gap (a line without its fields, a silence longer than the trace's `max_gap_s`) is refused: planning
on it would be planning for less traffic than there was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from planner.recorded import BadLine, TraceRequest
from planner.trace_formats import trace_rows
from planner.types import PlannerError

# Those whose requests come at times of their own, with lengths.
TraceFormat = Literal["azure", "bailian", "burstgpt", "mooncake", "ferry"]
FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)


@dataclass(frozen=True)
class Recording:
    """Requests in the order they came: seconds from the first one, and lengths in tokens.

    `shared_tokens` is what a prefix cache that forgets nothing would have held of the prompt. `block_ids` holds each
    prompt's blocks of `block_tokens` tokens, where the trace names them: equal ids are equal text.
    """

    arrival_s: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    shared_tokens: NDArray[np.int64]
    block_ids: tuple[tuple[int, ...], ...] = ()
    block_tokens: int = 0

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


def recording_from(lines: Iterable[str], *, trace_format: TraceFormat, file: str, max_gap_s: float) -> Recording:
    """The recording in the lines of a trace file. Raises PlannerError naming the line of the first gap or bad row."""
    rows: list[TraceRequest] = []
    for line, row in trace_rows(lines, trace_format):
        if isinstance(row, BadLine):
            _bad_line(file, line, row.text, row.why)
        if not row.input_tokens or not row.output_tokens:
            problem = "both must be above 0"
            _bad_line(file, line, f"{row.input_tokens} prompt and {row.output_tokens} answer tokens", problem)
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
        isl=np.array([row.input_tokens for row in rows], dtype=np.int64),
        osl=np.array([row.output_tokens for row in rows], dtype=np.int64),
        shared_tokens=np.array(list(_shared_tokens(rows)), dtype=np.int64),
        block_ids=tuple(row.block_ids for row in rows) if rows[0].block_tokens else (),
        block_tokens=rows[0].block_tokens,
    )


def _shared_tokens(rows: Iterable[TraceRequest]) -> Iterator[int]:
    """Of each prompt, the leading blocks that came before; an equal block id means an equal prompt up to there."""
    seen: set[int] = set()
    for row in rows:
        known = 0
        while known < len(row.block_ids) and row.block_ids[known] in seen:
            known += 1
        seen.update(row.block_ids)
        yield min(known * row.block_tokens, (row.input_tokens or 1) - 1)


def _bad_line(file: str, line: int, value: object, problem: str) -> NoReturn:
    raise PlannerError(file, f"line {line}", value, problem, f"correct line {line} of {file}, or leave it out")
