"""Latencies over several request rates, and where they bend. Pure but for the table that it prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.report import Report, Verdict
from loadtest.types import LoadTestError

MOST_RATES = 200
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# A rate is past the knee once this share of what is due does not come out, or TTFT is so many times the first rate's.
KEPT_UP = 0.95
KNEE_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """One rate. Latencies in ms by p50, p90, p99, over completed requests; NaN where there is none.

    Interrupted in its warm-up it has no figure at all: rates are NaN then, and the share is None.
    """

    rate_rps: float
    verdict: Verdict
    offered_rps: float
    completed_rps: float
    output_tokens_per_s: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    attainment: float | None
    report: str


def parse_rates(text: str) -> list[float]:
    """`1,2,4`, or `FROM:TO:COUNT` evenly spaced; each once, lowest first. Raises LoadTestError."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            number = int(count)
            if not 1 <= number <= MOST_RATES:
                raise LoadTestError(f"--rates {text}: between 1 and {MOST_RATES} of them")
            rates = np.linspace(float(low), float(high), number).tolist()
        else:
            rates = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise LoadTestError(f"--rates {text}: write 1,2,4 or FROM:TO:COUNT") from error
    if not all(0 < rate < math.inf for rate in rates):
        raise LoadTestError(f"--rates {text}: rates are above 0")
    return sorted(set(rates))


def row_of(rate_rps: float, report: Report, file: str) -> Row:
    total = report.total
    latencies = {}
    for name in ("ttft", "tpot"):
        found = total.distributions.get(name)
        latencies[name] = {key: found.completed_ms[q] if found else math.nan for key, q in QUANTILES.items()}
    return Row(
        rate_rps=rate_rps,
        verdict=report.verdict,
        offered_rps=total.due_rps,
        completed_rps=total.completed_rps,
        output_tokens_per_s=total.output_tokens_per_s,
        ttft_ms=latencies["ttft"],
        tpot_ms=latencies["tpot"],
        attainment=total.attainment.share if total.attainment is not None and total.attainment.due else None,
        report=file,
    )


def knee(rows: Sequence[Row]) -> float | None:
    """The last rate before latency takes off: the next one's median TTFT is three times that of the lowest rate, or
    less comes out than goes in. None if no rate is past it.
    """
    if not rows:
        return None
    usual_ms = rows[0].ttft_ms["p50"]
    for before, row in zip((None, *rows[:-1]), rows, strict=True):
        slow = row.ttft_ms["p50"] > KNEE_FACTOR * usual_ms
        if slow or row.completed_rps < KEPT_UP * row.offered_rps:
            return before.rate_rps if before else 0.0
    return None


def show_rows(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="by request rate, ms", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    heads = ("rate", "TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "tokens/s", "within the SLO", "")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    bend = knee(rows)
    for row in rows:
        values = [*row.ttft_ms.values(), *row.tpot_ms.values()]
        met = "-" if row.attainment is None else f"{row.attainment:.1%}"
        note = "INVALID" if row.verdict is Verdict.INVALID else "knee" if row.rate_rps == bend else ""
        cells = ["-" if math.isnan(value) else f"{value:.1f}" for value in values]
        tokens = "-" if math.isnan(row.output_tokens_per_s) else f"{row.output_tokens_per_s:.0f}"
        table.add_row(f"{row.rate_rps:g}", *cells, tokens, met, note)
    console.print(table)


def sweep_tree(rows: Sequence[Row], knee_rps: float | None, why: str = "") -> dict[str, Any]:
    """The sweep as a document, `ferry-sweep/1`. `why` it ended before its last rate, where it did."""
    return {
        "format": "ferry-sweep/1",
        "stopped": why or None,
        "knee_rps": knee_rps,
        "rates": [{**asdict(row), "verdict": row.verdict.value} for row in rows],
    }
