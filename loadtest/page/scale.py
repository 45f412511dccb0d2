"""From values to places on paper. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

# A tick every so many pixels at most: numbers side by side need more room than numbers one above the other.
ACROSS_PX, UPRIGHT_PX = 70.0, 40.0


class Scale(Protocol):
    """`from_px` is where `low` lies and `to_px` where `high` lies; values outside are drawn at the edge."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    def place(self, value: float) -> float: ...

    def ticks(self) -> list[tuple[float, str]]:
        """Values and what stands beside them."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    low: float
    high: float
    from_px: float
    to_px: float

    def place(self, value: float) -> float:
        share = (_clipped(value, self.low, self.high) - self.low) / (self.high - self.low)
        return self.from_px + share * (self.to_px - self.from_px)

    def ticks(self) -> list[tuple[float, str]]:
        step = nice_step((self.high - self.low) / max(2.0, abs(self.to_px - self.from_px) / _every_px(self)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Log:
    """For values above 0 that span decades."""

    low: float
    high: float
    from_px: float
    to_px: float

    def place(self, value: float) -> float:
        share = math.log(_clipped(value, self.low, self.high) / self.low) / math.log(self.high / self.low)
        return self.from_px + share * (self.to_px - self.from_px)

    def ticks(self) -> list[tuple[float, str]]:
        decades = math.log10(self.high / self.low)
        px_per_decade = abs(self.to_px - self.from_px) / decades
        every_px = _every_px(self)
        steps = (1, 2, 5) if px_per_decade > 2.2 * every_px else (1, 3) if px_per_decade > every_px else (1,)
        ticks = []
        for exponent in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
            ticks += [(step * 10.0**exponent, short(step * 10.0**exponent)) for step in steps]
        return [tick for tick in ticks if self.low * 0.999 <= tick[0] <= self.high * 1.001]


def from_zero(highest: float, from_px: float, to_px: float) -> Linear:
    """From 0 to a little above `highest`."""
    high = highest if highest > 0 and math.isfinite(highest) else 1.0
    return Linear(0.0, 1.05 * high, from_px, to_px)


def for_latency(lowest: float, highest: float, from_px: float, to_px: float) -> Scale:
    """Logarithmic where the values span more than a decade and a half, else from 0."""
    if lowest > 0 and highest / lowest > 30:
        return Log(lowest / 1.15, highest * 1.15, from_px, to_px)
    return from_zero(highest, from_px, to_px)


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (1, 2, 5):
        if step * power >= rough * 0.999:
            return step * power
    return 10 * power


def short(value: float) -> str:
    """Three digits, without an exponent where that is short too."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–" if math.isnan(value) else "∞"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:,.0f}"


def _every_px(scale: Linear | Log) -> float:
    """An upright scale runs against the pixels, which are counted from the top."""
    return UPRIGHT_PX if scale.from_px > scale.to_px else ACROSS_PX


def _clipped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
