"""The gap of a move over the context's length, as an SVG written by hand. Pure: cells in, text out.

One panel for each link and number of moves at once; both axes are logarithmic and all panels share them. A line joins
the medians of a mode, a whisker goes up to its p99, and a dashed line is the normal step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parts.moves import MODES, Cell

PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 360, 240, 2
LEFT, TOP, RIGHT, BOTTOM = 72, 30, 14, 44
LEGEND_HEIGHT, LEGEND_STEP = 60, 150
COLOURS = dict(zip((mode.name for mode in MODES), ("#0072b2", "#e69f00", "#cc3311"), strict=False))
STEP_COLOUR, GRID_COLOUR, INK = "#666666", "#dddddd", "#222222"
FONT = 'font-family="sans-serif" font-size="11"'
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis: values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)

    def decades(self) -> list[float]:
        return [10.0**n for n in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]


def svg(cells: Sequence[Cell]) -> str:
    """The whole picture of at least one cell."""
    panels = list(dict.fromkeys((cell.link, cell.streams) for cell in cells))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = columns * PANEL_WIDTH, LEGEND_HEIGHT + rows * PANEL_HEIGHT
    parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *_legend(cells)]
    for number, (link, streams) in enumerate(panels):
        x, y = number % columns * PANEL_WIDTH, LEGEND_HEIGHT + number // columns * PANEL_HEIGHT
        own = [cell for cell in cells if (cell.link, cell.streams) == (link, streams)]
        title = f"{link}, {streams} at once" if streams > 1 else f"{link}, one at a time"
        parts += [f'<g transform="translate({x},{y})">', *_panel(title, own, cells), "</g>"]
    body = "\n".join(parts)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT} fill="{INK}">\n{body}\n</svg>\n'


def _legend(cells: Sequence[Cell]) -> Iterable[str]:
    names = [name for name in COLOURS if any(cell.mode == name for cell in cells)]
    for number, name in enumerate([*names, "normal step"]):
        x, dash = LEFT + number * LEGEND_STEP, "" if name in COLOURS else ' stroke-dasharray="5 4"'
        colour = COLOURS.get(name, STEP_COLOUR)
        yield f'<line x1="{x}" y1="20" x2="{x + 24}" y2="20" stroke="{colour}" stroke-width="2"{dash}/>'
        yield _text(x + 30, 24, name, anchor="start")
    yield _text(
        LEFT,
        44,
        "line: p50 of the gap from the last token before a move to the first after it; whisker: p99",
        anchor="start",
    )


def _panel(title: str, cells: Sequence[Cell], all_cells: Sequence[Cell]) -> Iterable[str]:
    contexts = sorted({cell.context_tokens for cell in all_cells})
    values = [cell.figures[name] for cell in all_cells for name in ("gap_p99_ms", "step_p50_ms")]
    x = Scale(contexts[0] / 1.3, contexts[-1] * 1.3, LEFT, PANEL_WIDTH - RIGHT)
    low, high = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    y = Scale(low, max(high, 10 * low), PANEL_HEIGHT - BOTTOM, TOP)
    yield _text(LEFT, TOP - 10, title, anchor="start", weight="bold")
    yield from _axes(x, y, contexts)
    for mode, colour in COLOURS.items():
        own = sorted((cell for cell in cells if cell.mode == mode), key=lambda cell: cell.context_tokens)
        yield from _mode(own, colour, x, y)
    yield from _steps(cells, x, y)


def _axes(x: Scale, y: Scale, contexts: Sequence[int]) -> Iterable[str]:
    for value in y.decades():
        yield _line((x.start, y.at(value)), (x.end, y.at(value)), GRID_COLOUR)
        yield _text(x.start - 6, y.at(value) + 4, f"{value:,.0f}" if value >= 1 else f"{value:g}", anchor="end")
    for tokens in contexts:
        yield _line((x.at(tokens), y.start), (x.at(tokens), y.end), GRID_COLOUR)
        yield _text(x.at(tokens), y.start + 16, f"{tokens:,}")
    yield _text((x.start + x.end) / 2, y.start + 34, "context, tokens")
    middle = (y.start + y.end) / 2
    yield f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">gap, ms</text>'


def _mode(cells: Sequence[Cell], colour: str, x: Scale, y: Scale) -> Iterable[str]:
    medians = []
    for cell in cells:
        at, p50, p99 = x.at(cell.context_tokens), y.at(cell.figures["gap_p50_ms"]), y.at(cell.figures["gap_p99_ms"])
        yield _line((at, p50), (at, p99), colour)
        yield _line((at - 4, p99), (at + 4, p99), colour)
        yield f'<circle cx="{at:.1f}" cy="{p50:.1f}" r="3" fill="{colour}"/>'
        medians.append((at, p50))
    if medians:
        yield _path(medians, colour)


def _steps(cells: Sequence[Cell], x: Scale, y: Scale) -> Iterable[str]:
    by_context: dict[int, list[float]] = {}
    for cell in cells:
        by_context.setdefault(cell.context_tokens, []).append(cell.figures["step_p50_ms"])
    points = [(x.at(tokens), y.at(statistics.median(steps))) for tokens, steps in sorted(by_context.items())]
    yield _path(points, STEP_COLOUR, ' stroke-dasharray="5 4"')


def _path(points: Sequence[Point], colour: str, more: str = "") -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"{more}/>'


def _line(start: Point, end: Point, colour: str) -> str:
    ends = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {ends} stroke="{colour}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "middle", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>'
