"""Which charts a run gets, and what is drawn in them. Pure. Times are seconds from the run's start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from loadtest.document import Document
from loadtest.metrics import in_window, meets
from loadtest.page.scale import Linear, Scale, for_latency, from_zero, short
from loadtest.page.svg import Box, Plot, Point
from loadtest.saved import SavedRun
from loadtest.types import Record, Slo

NS_PER_S, NS_PER_MS = 1e9, 1e6
WIDE, HALF = Box(), Box(width=440.0, height=210.0)
CURVE_POINTS = 400
BINS = 60
SINCE_START = "seconds since the start"
LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms", "max_gap_ms", "attainment")


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    caption: str
    svg: str
    half: bool = False

    def html(self) -> str:
        """`caption` is HTML already."""
        caption = f"<figcaption><b>{escape(self.title)}</b> {self.caption}</figcaption>"
        return f'<figure>{caption}<div class="{"half" if self.half else "wide"}">{self.svg}</div></figure>'


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was done to the deployment, and until when it had an effect."""

    at_s: float
    until_s: float | None
    told: str
    word: str


def run_charts(run: SavedRun) -> list[Chart]:
    """Of the requests, over time."""
    if not run.records:
        return []
    slo, marks, end_s = slo_of(run), marks_of(run.document), end_s_of(run)
    frame = _Frame(Linear(0.0, end_s, WIDE.left, WIDE.right), marks)
    charts = [
        _dots(
            frame, run.records, "TTFT", lambda r: r.ttft_ns, slo.ttft_ms, "by the instant at which a request was due"
        ),
        _dots(frame, run.records, "TPOT", lambda r: r.tpot_ns, slo.tpot_ms, "by the same instant"),
        _longest_gaps(frame, run.records, slo),
        _attainment(frame, run.records, slos_of(run.document), slo, end_s),
        _in_flight(frame, run),
    ]
    return [chart for chart in charts if chart is not None]


def curve_charts(run: SavedRun) -> list[Chart]:
    """How each metric is distributed, over the requests that count."""
    slo, records = slo_of(run), in_window(run.records, 0, run.document.warmup_s)
    metrics: list[tuple[str, Callable[[Record], float | None], float | None]] = [
        ("TTFT", lambda r: r.ttft_ns, slo.ttft_ms),
        ("TPOT", lambda r: r.tpot_ns, slo.tpot_ms),
        ("Longest gap", _longest_ns, slo.max_gap_ms),
        ("E2E", lambda r: r.e2e_ns, slo.e2e_ms),
    ]
    charts = [_curve(records, *metric) for metric in metrics]
    return [chart for chart in charts if chart is not None]


def slo_of(run: SavedRun) -> Slo:
    """The SLO that all requests have; without limits where it is not one, or the document names none."""
    slo_of_class = slos_of(run.document)
    found = {slo_of_class(record.slo_class) for record in run.records}
    return found.pop() if len(found) == 1 else Slo()


def slos_of(document: Document) -> Callable[[str], Slo]:
    """The SLO of a class: its own, or the one of all."""
    usual = _slo(document.spec.get("slo") or {})
    own = {name: _slo(told) for name, told in (document.spec.get("class_slos") or {}).items()}
    return lambda name: own.get(name, usual)


def _slo(told: Mapping[str, Any]) -> Slo:
    return Slo(**{name: told[name] for name in LIMITS if name in told})


def marks_of(document: Document) -> list[Mark]:
    if document.drill is None:
        return []
    return [
        Mark(
            at_s=one.action.began_s,
            until_s=one.action.began_s + one.recovery.after_s if one.recovery.after_s is not None else None,
            told=f"{one.action.what} at {one.action.began_s:.1f} s: {'done' if one.action.ok else 'failed'}",
            word=one.action.what.partition(" ")[0],
        )
        for one in document.drill.actions
    ]


def end_s_of(run: SavedRun) -> float:
    """Of the last request, or of the last look at the server."""
    ends_ns = [record.end_ns for record in run.records]
    if run.watched is not None:
        ends_ns += [sample.at_ns for sample in run.watched.server]
    return max(1e-3, max(ends_ns, default=0) / NS_PER_S)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all charts over time share."""

    x: Linear
    marks: Sequence[Mark]

    def plot(self, y: Scale, y_label: str, name: str) -> Plot:
        return Plot(WIDE, self.x, y, SINCE_START, y_label, name)

    def finished(self, plot: Plot) -> str:
        for mark in self.marks:
            plot.mark(mark.at_s, mark.until_s, mark.told, mark.word)
        return plot.text()


def _dots(
    frame: _Frame,
    records: Sequence[Record],
    name: str,
    value_ns: Callable[[Record], float | None],
    limit_ms: float | None,
    how: str,
) -> Chart | None:
    good = [(r.due_ns / NS_PER_S, ns / NS_PER_MS) for r in records if r.ok and (ns := value_ns(r)) is not None]
    broken = [record for record in records if not record.ok]
    if not good and not broken:
        return None
    y = _latency_scale([value for _, value in good], limit_ms)
    plot = frame.plot(y, "ms", f"{name} of each request over time")
    plot.dots(good, "a")
    plot.crosses(((r.due_ns / NS_PER_S, y.high, f"#{r.number} {r.outcome.value}: {r.detail}") for r in broken), "bad")
    _level(plot, limit_ms)
    caption = f"{how}{_key('a', 'completed')}"
    if broken:
        caption += _key("bad", f"{len(broken)} did not complete (at the top; point at one to see why)")
    return Chart(name, caption, frame.finished(plot))


def _longest_gaps(frame: _Frame, records: Sequence[Record], slo: Slo) -> Chart | None:
    points = [_longest_gap(record) for record in records if record.gaps_ns.size]
    if not points:
        return None
    moved = {record.number for record in records if record.moves is not None and record.moves.others}
    numbers = [record.number for record in records if record.gaps_ns.size]
    still = [point for number, point in zip(numbers, points, strict=True) if number not in moved]
    of_moved = [point for number, point in zip(numbers, points, strict=True) if number in moved]
    y = _latency_scale([value for _, value in points], slo.max_gap_ms)
    plot = frame.plot(y, "ms", "longest gap of each stream over time")
    plot.dots(still, "a")
    plot.dots(of_moved, "d")
    _level(plot, slo.max_gap_ms)
    caption = "of each stream, where it began" + (_key("a", "stayed") + _key("d", "moved") if of_moved else "")
    return Chart("Longest gap", caption, frame.finished(plot))


def _longest_gap(record: Record) -> Point:
    at = int(record.gaps_ns.argmax())
    return float(record.event_ns[at]) / NS_PER_S, float(record.gaps_ns[at]) / NS_PER_MS


def _attainment(
    frame: _Frame, records: Sequence[Record], slo_of_class: Callable[[str], Slo], common: Slo, end_s: float
) -> Chart | None:
    """`common`: the one of all requests, where it is one; its goal is drawn."""
    if not any(slo_of_class(record.slo_class) for record in records):
        return None
    last_due_s = max(record.due_ns for record in records) / NS_PER_S
    width_s = max(1.0, last_due_s / BINS)
    met: dict[int, list[bool]] = {}
    for record in records:
        met.setdefault(int(record.due_ns / NS_PER_S / width_s), []).append(
            meets(record, slo_of_class(record.slo_class))
        )
    y = Linear(0.0, 100.0, WIDE.bottom, WIDE.top)
    plot = frame.plot(y, "% within the SLO", "share of requests within the SLO over time")
    plot.bars(
        ((bin_ * width_s, min((bin_ + 1) * width_s, end_s), 100 * sum(some) / len(some)) for bin_, some in met.items()),
        "c",
    )
    if common:
        plot.level(100 * common.attainment, f"wanted {100 * common.attainment:g} %")
    caption = f"of the requests due in each {width_s:.3g} s; a bar that is missing had none due, or none within it"
    return Chart("Attainment", caption, frame.finished(plot))


def _in_flight(frame: _Frame, run: SavedRun) -> Chart:
    edges = sorted(
        [(r.send_ns, 1) for r in run.records if r.send_ns] + [(r.end_ns, -1) for r in run.records if r.send_ns]
    )
    depth, curve = 0, [(0.0, 0.0)]
    for at_ns, step in edges:
        depth += step
        curve.append((at_ns / NS_PER_S, float(depth)))
    server = run.watched.server if run.watched is not None else ()
    running = [(sample.at_ns / NS_PER_S, sample.running) for sample in server if sample.engines]
    waiting = [(sample.at_ns / NS_PER_S, sample.waiting) for sample in server if sample.engines]
    highest = max(value for _, value in [*curve, *running, *waiting])
    plot = frame.plot(from_zero(highest, WIDE.bottom, WIDE.top), "requests", "requests in flight over time")
    plot.line(_fewer(curve), "a", steps=True)
    plot.line(running, "c")
    plot.line(waiting, "b")
    keys = _key("a", "sent and not ended (client)")
    if running:
        keys += _key("c", "running (server)") + _key("b", "waiting (server)")
    return Chart("In flight", keys, frame.finished(plot))


def _curve(
    records: Sequence[Record], name: str, value_ns: Callable[[Record], float | None], limit_ms: float | None
) -> Chart | None:
    values_ms = np.sort([ns / NS_PER_MS for r in records if r.ok and (ns := value_ns(r)) is not None])
    if not len(values_ms):
        return None
    shares = np.arange(1, len(values_ms) + 1)
    chosen = _chosen(len(values_ms))
    x = _latency_scale(values_ms.tolist(), limit_ms, HALF.left, HALF.right)
    plot = Plot(HALF, x, Linear(0.0, 100.0, HALF.bottom, HALF.top), "ms", "% of requests", f"distribution of {name}")
    plot.line(list(zip(values_ms[chosen], 100 * shares[chosen] / len(values_ms), strict=True)), "a", steps=True)
    caption = ""
    broken = sum(not record.ok for record in records)
    if broken:
        # What has no value counts, or a server that drops its slow requests would look quick.
        due = len(values_ms) + broken
        plot.line(list(zip(values_ms[chosen], 100 * shares[chosen] / due, strict=True)), "bad", steps=True, dashed=True)
        caption = _key("a", "completed") + _key("bad", "all due")
    if limit_ms is not None:
        plot.mark(limit_ms, None, f"SLO {limit_ms:g} ms")
        caption += f' <span class="soft">SLO at {limit_ms:g} ms</span>'
    return Chart(name, caption, plot.text(), half=True)


def _chosen(count: int) -> np.ndarray:
    """Places of a sorted list: evenly, and every one of the last, where the tail is."""
    if count <= CURVE_POINTS:
        return np.arange(count)
    even = np.linspace(0, count - 1, CURVE_POINTS).astype(int)
    return np.unique(np.concatenate([even, np.arange(count - 40, count)]))


def _fewer(curve: Sequence[Point]) -> list[Point]:
    """One point each half pixel is enough: the highest of them."""
    best: dict[int, Point] = {}
    span_s = max(curve[-1][0], 1e-9)
    for point in curve:
        place = int(point[0] / span_s * 2 * WIDE.width)
        if place not in best or point[1] >= best[place][1]:
            best[place] = point
    return [*best.values(), curve[-1]]


def _longest_ns(record: Record) -> float | None:
    return float(record.gaps_ns.max()) if record.gaps_ns.size else None


def _latency_scale(
    values_ms: Iterable[float], limit_ms: float | None, from_px: float = WIDE.bottom, to_px: float = WIDE.top
) -> Scale:
    all_ms = [*values_ms, *([limit_ms] if limit_ms is not None else [])]
    above_0 = [value for value in all_ms if value > 0]
    return for_latency(min(above_0, default=0.0), max(above_0, default=1.0), from_px, to_px)


def _level(plot: Plot, limit_ms: float | None) -> None:
    if limit_ms is not None:
        plot.level(limit_ms, f"SLO {short(limit_ms)} ms")


def _key(colour: str, told: str) -> str:
    return f'<span class="key {colour}"></span>{escape(told)}'
