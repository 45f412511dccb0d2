"""One page over runs at several rates: latency and attainment against the rate, with the SLO and the capacity. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadtest.page.charts import WIDE, Chart
from loadtest.page.scale import Linear, for_latency, from_zero
from loadtest.page.style import STYLE
from loadtest.page.svg import Plot
from loadtest.page.tables import figure
from loadtest.rates.searched import Known
from loadtest.rates.sweep import Row
from loadtest.types import Slo

COLOURS = {"p50": "a", "p90": "b", "p99": "d"}
HEADS = ("requests/s", "completed/s", "TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "within the SLO", "run")


@dataclass(frozen=True, kw_only=True)
class RatePage:
    """`rows` in any order. `statement` says the result in a sentence; `wanted` is the share that must meet `slo`, None
    where requests have SLOs of their own; `known` is the capacity where one was searched. Without `joined` the runs are
    dots alone: those of a search lie close.
    """

    title: str
    statement: str
    rows: Sequence[Row]
    slo: Slo
    wanted: float | None
    known: Known | None = None
    joined: bool = True

    def html(self) -> str:
        """One HTML document that needs nothing else."""
        charts = [chart for chart in self._charts() if chart is not None]
        figures = "".join(chart.html() for chart in charts)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><h1>{escape(self.title)}</h1>"
            f"<p>{escape(self.statement)}</p><h2>Against the rate</h2>{figures}<h2>The runs</h2>{self._table()}"
            "</body></html>\n"
        )

    def _charts(self) -> list[Chart | None]:
        return [
            self._latency("TTFT", [(row.rate_rps, row.ttft_ms) for row in self._sorted()], self.slo.ttft_ms),
            self._latency("TPOT", [(row.rate_rps, row.tpot_ms) for row in self._sorted()], self.slo.tpot_ms),
            self._attainment(),
            self._completed(),
        ]

    def _sorted(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.rate_rps)

    def _across(self) -> Linear:
        return from_zero(max((row.rate_rps for row in self.rows), default=1.0), WIDE.left, WIDE.right)

    def _latency(self, name: str, runs: list[tuple[float, dict[str, float]]], limit_ms: float | None) -> Chart | None:
        values = [value for _, latency in runs for value in latency.values() if math.isfinite(value)]
        if not values:
            return None
        limits = [limit_ms] if limit_ms is not None else []
        upright = for_latency(min(values), max(values + limits), WIDE.bottom, WIDE.top)
        plot = Plot(WIDE, self._across(), upright, "requests/s", "ms", f"{name} against the rate")
        self._band(plot)
        for key, colour in COLOURS.items():
            points = [(rate, latency[key]) for rate, latency in runs]
            if self.joined:
                plot.line(points, colour)
            plot.dots(points, colour)
        if limit_ms is not None:
            plot.level(limit_ms, f"SLO {limit_ms:g} ms")
        keys = "".join(f'<span class="key {colour}"></span>{key}' for key, colour in COLOURS.items())
        return Chart(name, f"of completed requests, in ms {keys}", plot.text())

    def _attainment(self) -> Chart | None:
        points = [(row.rate_rps, 100 * row.attainment) for row in self._sorted() if row.attainment is not None]
        if not points:
            return None
        plot = Plot(
            WIDE, self._across(), Linear(0.0, 102.0, WIDE.bottom, WIDE.top), "requests/s", "%", "Share within the SLO"
        )
        self._band(plot)
        if self.joined:
            plot.line(points, "c")
        plot.dots(points, "c")
        if self.wanted is not None:
            plot.level(100 * self.wanted, f"{100 * self.wanted:g} % must")
        return Chart("Within the SLO", "of the requests due, failures counted as misses", plot.text())

    def _completed(self) -> Chart | None:
        points = [(row.rate_rps, row.completed_rps) for row in self._sorted() if math.isfinite(row.completed_rps)]
        if not points:
            return None
        across = self._across()
        upright = Linear(0.0, across.high, WIDE.bottom, WIDE.top)
        plot = Plot(WIDE, across, upright, "requests/s", "completed/s", "Completed against due")
        plot.line([(0.0, 0.0), (across.high, across.high)], "goal", dashed=True)
        plot.dots(points, "a")
        return Chart("Completed", "against what was due; on the dashed line nothing is left over", plot.text())

    def _band(self, plot: Plot) -> None:
        """The capacity, and how sure it is."""
        if self.known is None:
            return
        found = self.known
        plot.mark(found.low_rps, min(found.high_rps, plot.x.high), f"capacity, {found.bounds}")
        plot.mark(found.rate_rps, None, f"capacity {found.rate_rps:.4g} requests/s", "capacity")

    def _table(self) -> str:
        heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS)
        rows = "".join(f"<tr>{self._cells(row)}</tr>" for row in self._sorted())
        return f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>'

    def _cells(self, row: Row) -> str:
        met = "" if row.attainment is None else f"{100 * row.attainment:.1f} %"
        times = [figure(value, "ms") for value in (*row.ttft_ms.values(), *row.tpot_ms.values())]
        note = f"{escape(row.report)}{' INVALID' if row.verdict.value == 'INVALID' else ''}"
        cells = [figure(row.rate_rps), figure(row.completed_rps), *times, met]
        return "".join(f"<td>{cell}</td>" for cell in cells) + f'<td class="words"><code>{note}</code></td>'
