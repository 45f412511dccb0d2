"""What the tokens of a run cost. Pure.

Every hour of the deployment is paid for, so the price of the window is shared by the tokens that came of it in time:
tokens of requests that missed the SLO are paid for and worth nothing. Where a server falls behind, what was due in the
window takes longer than the window: the price of all tokens is by the pace at which they came out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.metrics import meets
from loadtest.types import Record, Slo

S_PER_HOUR = 3600.0
PER_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Rent:
    """What the whole deployment costs, and who says so."""

    usd_per_hour: float
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars of the window, and per million output tokens. None: there was no such token, or no SLO."""

    usd_per_hour: float
    source: str
    """Who says so."""
    usd: float
    output_tokens: int
    """Of completed requests."""
    good_tokens: int | None
    """Of requests that met the SLO."""
    usd_per_million_tokens: float | None
    usd_per_million_good_tokens: float | None


def cost_of(
    records: Sequence[Record], slo_of: Callable[[str], Slo], window_s: float, rent: Rent, *, tokens_per_s: float
) -> Cost:
    """`records`: those due in the window of `window_s`; `slo_of`: the SLO of a class; `tokens_per_s`: as they came."""
    usd = rent.usd_per_hour * window_s / S_PER_HOUR
    judged = any(slo_of(record.slo_class) for record in records)
    tokens = sum(record.output_tokens for record in records if record.ok)
    good = sum(record.output_tokens for record in records if meets(record, slo_of(record.slo_class)))
    return Cost(
        usd_per_hour=rent.usd_per_hour,
        source=rent.source,
        usd=usd,
        output_tokens=tokens,
        good_tokens=good if judged else None,
        usd_per_million_tokens=_per_million(rent.usd_per_hour / S_PER_HOUR, tokens_per_s),
        usd_per_million_good_tokens=_per_million(usd, good) if judged else None,
    )


def _per_million(usd: float, tokens: float) -> float | None:
    return PER_MILLION * usd / tokens if tokens > 0 else None
