"""One chart as SVG text. Colours are names of the page's style sheet, so that they follow light and dark. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from loadtest.page.scale import Scale

Point = tuple[float, float]

LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 10.0, 34.0


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart lies, in pixels of its own."""

    width: float = 880.0
    height: float = 230.0

    @property
    def left(self) -> float:
        return LEFT

    @property
    def right(self) -> float:
        return self.width - RIGHT

    @property
    def top(self) -> float:
        return TOP

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM


@dataclass(slots=True)
class Plot:
    """Collects what is drawn; `text` gives the whole. `x` and `y` are in place before anything is drawn."""

    box: Box
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    name: str
    """What a screen reader says."""
    _parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], colour: str, *, steps: bool = False, dashed: bool = False) -> None:
        """Through all points; `steps`: each value holds until the next."""
        placed = self._placed(points)
        if not placed:
            return
        path = f"M{_px(placed[0][0])} {_px(placed[0][1])}"
        for x, y in placed[1:]:
            path += f"H{_px(x)}V{_px(y)}" if steps else f"L{_px(x)} {_px(y)}"
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path class="line {colour}" d="{path}"{dashes}/>')

    def dots(self, points: Iterable[Point], colour: str) -> None:
        """One dot each; points that fall on one place are drawn once, so a long run makes no huge file."""
        places = {(_px(x), _px(y)) for x, y in self._placed(points)}
        if places:
            path = "".join(f"M{x} {y}h0" for x, y in sorted(places))
            self._parts.append(f'<path class="dots {colour}" d="{path}"/>')

    def crosses(self, points: Iterable[tuple[float, float, str]], colour: str) -> None:
        """At x and y, each with what it says when pointed at."""
        for x, y, told in points:
            px, py = self.x.place(x), self.y.place(y)
            self._parts.append(
                f'<path class="line {colour}" d="M{_px(px - 3)} {_px(py - 3)}l6 6m0 -6l-6 6">'
                f"<title>{escape(told)}</title></path>"
            )

    def bars(self, bars: Iterable[tuple[float, float, float]], colour: str) -> None:
        """From x to x, of this height."""
        for begin, end, value in bars:
            left, right, top = self.x.place(begin), self.x.place(end), self.y.place(value)
            if value:
                width, height = max(0.8, right - left - 0.6), self.box.bottom - top
                self._parts.append(
                    f'<rect class="{colour} fill" x="{_px(left)}" y="{_px(top)}" width="{_px(width)}" '
                    f'height="{_px(height)}"/>'
                )

    def level(self, value: float, told: str, colour: str = "goal") -> None:
        """A line across the chart, such as an SLO."""
        py = self.y.place(value)
        above = py - 4 if py > self.box.top + 14 else py + 12
        self._parts.append(
            f'<path class="line {colour}" d="M{_px(self.box.left)} {_px(py)}H{_px(self.box.right)}"/>'
            f'<text class="{colour} word" x="{_px(self.box.right)}" y="{_px(above)}" text-anchor="end">'
            f"{escape(told)}</text>"
        )

    def mark(self, at: float, until: float | None, told: str, word: str = "") -> None:
        """Something that happened at this x, until that one. `word` stands beside it, `told` when it is pointed at."""
        px = self.x.place(at)
        if until is not None and until > at:
            width = self.x.place(until) - px
            self._parts.insert(
                0,
                f'<rect class="during" x="{_px(px)}" y="{_px(self.box.top)}" width="{_px(width)}" '
                f'height="{_px(self.box.bottom - self.box.top)}"/>',
            )
        self._parts.append(
            f'<path class="line event" d="M{_px(px)} {_px(self.box.top)}V{_px(self.box.bottom)}">'
            f"<title>{escape(told)}</title></path>"
        )
        if word:
            self._parts.append(
                f'<text class="event word" x="{_px(px + 4)}" y="{_px(self.box.top + 10)}">{escape(word)}</text>'
            )

    def _placed(self, points: Iterable[Point]) -> list[Point]:
        """In pixels. A figure that is not known, NaN, has no place."""
        return [(self.x.place(x), self.y.place(y)) for x, y in points if not math.isnan(x) and not math.isnan(y)]

    def text(self) -> str:
        box = self.box
        return (
            f'<svg viewBox="0 0 {box.width:g} {box.height:g}" role="img" aria-label="{escape(self.name)}">'
            f"{''.join(self._axes())}{''.join(self._parts)}</svg>"
        )

    def _axes(self) -> list[str]:
        box, parts = self.box, []
        for value, told in self.y.ticks():
            py = _px(self.y.place(value))
            parts.append(f'<path class="grid" d="M{_px(box.left)} {py}H{_px(box.right)}"/>')
            parts.append(f'<text x="{_px(box.left - 6)}" y="{py}" dy="0.32em" text-anchor="end">{told}</text>')
        for value, told in self.x.ticks():
            px = _px(self.x.place(value))
            parts.append(f'<path class="grid" d="M{px} {_px(box.top)}V{_px(box.bottom)}"/>')
            parts.append(f'<text x="{px}" y="{_px(box.bottom + 15)}" text-anchor="middle">{told}</text>')
        middle = _px((box.top + box.bottom) / 2)
        parts.append(
            f'<text x="{_px((box.left + box.right) / 2)}" y="{_px(box.height - 3)}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(self.y_label)}</text>'
        )
        return parts


def _px(value: float) -> str:
    """Half pixels are fine enough, and short."""
    return f"{round(value * 2) / 2:g}"
