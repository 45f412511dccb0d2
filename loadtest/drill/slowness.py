"""How slow a network is made: what is sent now arrives when the link has carried it, and a delay later. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.types import LoadTestError

OFF = "off"
_UNITS = {"ms": 1e-3, "mbit": 1e6 / 8}


@dataclass(frozen=True, slots=True)
class Slowness:
    """Of each direction: added to the way, and what it carries per second, of all connections together."""

    delay_s: float = 0.0
    bytes_per_s: float = math.inf


FREE = Slowness()


def parse_slowness(text: str, where: str) -> Slowness:
    """From `80ms`, `10mbit`, `80ms 10mbit` or `off`. Raises LoadTestError that begins with `where`."""
    if text == OFF:
        return FREE
    found: dict[str, float] = {}
    for word in text.lower().split():
        unit = next((unit for unit in _UNITS if word.endswith(unit)), "")
        try:
            value = float(word.removesuffix(unit)) if unit and unit not in found else math.nan
        except ValueError:
            value = math.nan
        if not (value > 0 and math.isfinite(value)):
            raise LoadTestError(f"{where}: {text!r} is not `80ms`, `10mbit`, both of them, or `{OFF}`")
        found[unit] = value * _UNITS[unit]
    return Slowness(found.get("ms", 0.0), found.get("mbit", math.inf))


class Link:
    """One direction of the network."""

    def __init__(self) -> None:
        self.slowness = FREE
        self._carried_s = 0.0

    def arrives_s(self, now_s: float, size_bytes: int) -> float:
        """When what is given to it now is at the other end."""
        self._carried_s = max(now_s, self._carried_s) + size_bytes / self.slowness.bytes_per_s
        return self._carried_s + self.slowness.delay_s
