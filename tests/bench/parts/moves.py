"""What a measurement of moves asks for and what it found: modes, jobs, cells. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

P50_AIM_STEPS, P99_AIM_STEPS = 0.4, 1.0
FIRST_TOKENS = 128
NOTHING = "-"
COLUMNS = (
    *("link", "context", "at once", "mode", "moves", "step p50", "p99", "gap p50", "p99"),
    *("above p50", "of aim", "above p99", "of aim", "moving step", "whole"),
)
WIDTHS = (9, 13, 7, 17, 9, 9, 7, 9, 9, 9, 12, 9, 12, 11, 8, 0)
LEGEND = f"""\
times in ms. context: tokens at the moves, lowest to highest. moves: in how many rounds, if several went at once.
step: between two tokens of the same streams while nothing moves. gap: between the last token before a move and the
first after it. above: (gap - step p50) / step p50, in steps. of aim: above / aim; the aims of moves with KV are
{P50_AIM_STEPS} for p50, {P99_AIM_STEPS:g} for p99. moving step: p50 between tokens from the wish to the cut-over.
whole: p50 from the wish to the first token after the move. A p99 of few moves is nearly the highest of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to move. `wish`: keywords of `PoolClient.move`; `counted_as`: how Ferry's metrics name such a move."""

    name: str
    wish: dict[str, bool]
    counted_as: str
    costly: bool = False
    """A move takes seconds: fewer of them are made, and no aim holds."""


MODES = (
    Mode(name="kv, pre-copy", wish={"carry_kv": True, "precopy": True}, counted_as="kv"),
    Mode(name="kv, stop-and-copy", wish={"carry_kv": True, "precopy": False}, counted_as="kv"),
    Mode(name="replay", wish={"carry_kv": False}, counted_as="replay", costly=True),
)
STOP_AND_COPY = MODES[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellJob:
    """At least `moves` moves of contexts around `context_tokens`, `streams` of them at once."""

    mode: Mode
    context_tokens: int
    streams: int
    moves: int
    seed: str
    first_tokens: int = FIRST_TOKENS
    """Output of the first streams; the next have four times as many when these end before their moves."""


@dataclass(slots=True, kw_only=True)
class Found:
    """Samples of one cell; seconds, one per step or move."""

    step_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    moving_step_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    context_tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    fell_back: int = 0
    """Moves that Ferry made otherwise than wished; they are in no other list."""
    left_out: int = 0
    """Moves of rounds in which a stream ended before its move did. The slowest is missing, so the others would flatter;
    they are in no other list."""
    moved_bytes: float = 0.0
    """KV bytes that Ferry says its moves carried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row. `figures`: milliseconds, steps and counts by name."""

    link: str
    mode: str
    context_tokens: int
    streams: int
    figures: dict[str, float]
    has_aim: bool


def cell(link: str, job: CellJob, found: Found) -> Cell:
    """The row of what was found."""
    return Cell(
        link=link,
        mode=job.mode.name,
        context_tokens=job.context_tokens,
        streams=job.streams,
        figures=_figures(found),
        has_aim=not job.mode.costly,
    )


def _figures(found: Found) -> dict[str, float]:
    step_ms, gap_ms = 1e3 * np.asarray(found.step_s), 1e3 * np.asarray(found.gap_s)
    step_p50_ms = float(np.quantile(step_ms, 0.5))
    above_steps = (gap_ms - step_p50_ms) / step_p50_ms
    figures = {
        "moves": float(len(gap_ms)),
        "rounds": float(found.rounds),
        "fell_back": float(found.fell_back),
        "least_tokens": float(min(found.context_tokens)),
        "most_tokens": float(max(found.context_tokens)),
        "step_p50_ms": step_p50_ms,
        "step_p99_ms": float(np.quantile(step_ms, 0.99)),
        "gap_p50_ms": float(np.quantile(gap_ms, 0.5)),
        "gap_p99_ms": float(np.quantile(gap_ms, 0.99)),
        "above_p50_steps": float(np.quantile(above_steps, 0.5)),
        "above_p99_steps": float(np.quantile(above_steps, 0.99)),
        "whole_p50_ms": 1e3 * float(np.quantile(found.whole_s, 0.5)),
    }
    if found.moving_step_s:
        figures["moving_step_p50_ms"] = 1e3 * float(np.quantile(found.moving_step_s, 0.5))
    return figures


def heading() -> str:
    return _line(COLUMNS)


def row(cell: Cell) -> str:
    """One line of the table."""
    f = cell.figures
    moves = f"{f['moves']:.0f}" + (f" in {f['rounds']:.0f}" if cell.streams > 1 else "")
    return _line(
        (
            *(cell.link, f"{f['least_tokens']:,.0f}-{f['most_tokens']:,.0f}", str(cell.streams), cell.mode, moves),
            *(f"{f['step_p50_ms']:.1f}", f"{f['step_p99_ms']:.1f}", f"{f['gap_p50_ms']:.1f}", f"{f['gap_p99_ms']:.1f}"),
            *(f"{f['above_p50_steps']:.2f}", _of_aim(f["above_p50_steps"], P50_AIM_STEPS, cell.has_aim)),
            *(f"{f['above_p99_steps']:.2f}", _of_aim(f["above_p99_steps"], P99_AIM_STEPS, cell.has_aim)),
            f"{f['moving_step_p50_ms']:.1f}" if "moving_step_p50_ms" in f else NOTHING,
            f"{f['whole_p50_ms']:.0f}",
            *([f"{f['fell_back']:.0f} more fell back to another way"] if f["fell_back"] else []),
        )
    )


def _of_aim(steps: float, aim_steps: float, has_aim: bool) -> str:
    if not has_aim:
        return NOTHING
    return f"{steps / aim_steps:.2f} {'met' if steps <= aim_steps else 'MISSED'}"


def _line(words: Sequence[Any]) -> str:
    return " ".join(f"{word!s:>{width}}" for word, width in zip(words, WIDTHS, strict=False))
