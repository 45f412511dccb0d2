"""How values are written: nothing that JSON lacks, and no wrapped or coloured lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

from rich.console import Console


def plain(value: object) -> object:
    """`value` without infinities and NaN, which JSON lacks: they become null."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def milliseconds(value: float) -> str:
    """Three digits that mean something; a dash for what never comes."""
    if not isfinite(value):
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """As they are: brackets are no markup, and a long line is the terminal's to wrap."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
