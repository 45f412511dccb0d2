"""Looks into JSON of other tools: what is not there, or of another type, is None. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def at(tree: Any, *path: str) -> Any:
    """What stands at the end of the path; None if it does not go that far."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def number(tree: Any, *path: str) -> float | None:
    """A finite number, or None."""
    value = at(tree, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole(tree: Any, *path: str) -> int | None:
    """The same as a count."""
    value = number(tree, *path)
    return round(value) if value is not None else None


def text(tree: Any, *path: str) -> str | None:
    value = at(tree, *path)
    return value if isinstance(value, str) and value else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
