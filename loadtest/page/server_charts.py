"""Charts of what was seen of the server. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from loadtest.moves import HANDOVER
from loadtest.page.charts import NS_PER_S, SINCE_START, WIDE, Chart, Mark, end_s_of, marks_of
from loadtest.page.scale import Linear, from_zero
from loadtest.page.svg import Plot, Point
from loadtest.saved import SavedRun
from loadtest.watch.summary import kv_share, pools_of, rise
from loadtest.watch.types import GpuSample, ServerSample

COLOURS = ("a", "b", "c", "d")


def server_charts(run: SavedRun) -> list[Chart]:
    """Empty where nobody looked, or where there was nothing to see."""
    if run.watched is None:
        return []
    x = Linear(0.0, end_s_of(run), WIDE.left, WIDE.right)
    marks = marks_of(run.document)
    server, gpus = run.watched.server, run.watched.gpus
    charts = [_kv(server, x, marks), _events(server, x, marks), _gpu_busy(gpus, x, marks), _gpu_power(gpus, x, marks)]
    return [chart for chart in charts if chart is not None]


def _kv(server: Sequence[ServerSample], x: Linear, marks: Sequence[Mark]) -> Chart | None:
    """Percent of the KV blocks in use, by pool."""
    lines: dict[str, list[Point]] = {}
    for pool in pools_of(server):
        for sample in server:
            share = kv_share([engine for engine in sample.engines if engine.pool == pool])
            if share is not None:
                lines.setdefault(pool or "all engines", []).append((sample.at_ns / NS_PER_S, 100 * share))
    if not lines:
        return None
    y = Linear(0.0, 100.0, WIDE.bottom, WIDE.top)
    return _lines("KV blocks in use", "mean of each pool's engines, from /metrics", "%", lines, x, y, marks)


def _events(server: Sequence[ServerSample], x: Linear, marks: Sequence[Mark]) -> Chart | None:
    """Moves and preemptions, between one scrape and the next. Hand-overs are as many as requests, and hide the rest."""
    bars: dict[str, list[tuple[float, float, float]]] = {}
    for name in ("moves", "preemptions"):
        for before, after in pairwise(server):
            # `rise` takes a series that is new in its second sample as one that began at 0.
            risen = sum(count for who, count in rise((before, after), name).items() if HANDOVER not in who)
            if risen:
                bars.setdefault(name, []).append((before.at_ns / NS_PER_S, after.at_ns / NS_PER_S, risen))
    if not bars:
        return None
    y = from_zero(max(height for some in bars.values() for _, _, height in some), WIDE.bottom, WIDE.top)
    plot = Plot(WIDE, x, y, SINCE_START, "between two scrapes", "moves and preemptions over time")
    caption = "without the hand-overs after the prefill"
    for colour, (name, some) in zip(("d", "bad"), sorted(bars.items()), strict=False):
        plot.bars(some, colour)
        caption += f'<span class="key {colour}"></span>{escape(name)}'
    return Chart("Moves and preemptions", caption, _marked(plot, marks))


def _gpu_busy(gpus: Sequence[GpuSample], x: Linear, marks: Sequence[Mark]) -> Chart | None:
    lines: dict[str, list[Point]] = {}
    for gpu in gpus:
        if gpu.busy_share is not None:
            lines.setdefault(_gpu_name(gpu), []).append((gpu.at_ns / NS_PER_S, 100 * gpu.busy_share))
    y = Linear(0.0, 100.0, WIDE.bottom, WIDE.top)
    return _lines("GPUs of the client's machine", "busy", "%", lines, x, y, marks) if lines else None


def _gpu_power(gpus: Sequence[GpuSample], x: Linear, marks: Sequence[Mark]) -> Chart | None:
    lines: dict[str, list[Point]] = {}
    for gpu in gpus:
        if gpu.power_w is not None:
            lines.setdefault(_gpu_name(gpu), []).append((gpu.at_ns / NS_PER_S, gpu.power_w))
    if not lines:
        return None
    y = from_zero(max(power for line in lines.values() for _, power in line), WIDE.bottom, WIDE.top)
    return _lines("GPU power", "as the driver tells it", "W", lines, x, y, marks)


def _lines(
    title: str,
    caption: str,
    unit: str,
    lines: dict[str, list[Point]],
    x: Linear,
    y: Linear,
    marks: Sequence[Mark],
) -> Chart:
    plot = Plot(WIDE, x, y, SINCE_START, unit, f"{title} over time")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        plot.line(points, colour, dashed=number >= len(COLOURS))
        caption += f'<span class="key {colour}"></span>{escape(name)}'
    return Chart(title, caption, _marked(plot, marks))


def _marked(plot: Plot, marks: Sequence[Mark]) -> str:
    for mark in marks:
        plot.mark(mark.at_s, mark.until_s, mark.told, mark.word)
    return plot.text()


def _gpu_name(gpu: GpuSample) -> str:
    return f"{gpu.index}: {gpu.name}"
