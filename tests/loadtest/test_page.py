"""The page is whole by itself, shows what the run was, and lets nothing from outside become markup."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.cost import Rent
from loadtest.document import Document, SummaryFigures
from loadtest.moves import Moves, ToldMove
from loadtest.page.charts import curve_charts
from loadtest.page.page import page
from loadtest.page.rate_page import RatePage
from loadtest.page.scale import Linear, Log, for_latency, from_zero, nice_step, short
from loadtest.page.svg import Box, Plot
from loadtest.rates.sweep import row_of
from loadtest.report import build
from loadtest.results import save
from loadtest.saved import SavedRun, read_run
from loadtest.spec import RunResult
from loadtest.types import Outcome, Promise, Slo
from loadtest.watch.exposition import server_sample
from loadtest.watch.types import GpuSample, Watched
from tests.loadtest.builders import record
from tests.loadtest.test_results import START_NS, result, some
from tests.loadtest.test_watch import S, exposition

VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Every tag that opens closes, in its order; collects the texts and the tags' attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(text: str) -> Balance:
    balance = Balance()
    balance.feed(text)
    balance.close()
    assert balance.open == []
    return balance


def whole_run(**changes: object) -> RunResult:
    """Requests that were good, late, cut and moved, with the server watched."""
    records = [*some(60, late=6), record([6100.0, 6150.0], Outcome.CUT, number=60, due_ms=6000.0)]
    made = result(records, Slo(ttft_ms=500, max_gap_ms=900))
    told = (ToldMove(START_NS + S, "kv", "drain", 2, 31.0),)
    moved = replace(made.records[3], moves=Moves(1, 0, (31.0,), 0, told))
    samples = tuple(server_sample(exposition(n), START_NS + n * S, 2_000_000) for n in range(7))
    gpus = tuple(GpuSample(START_NS + n * S, 0, "GPU <A>", 0.5, 2**30, 250.0) for n in range(7))
    made = replace(
        made,
        records=(*made.records[:3], moved, *made.records[4:]),
        watched=Watched(samples, gpus, {"status 500": 1}),
        spec=replace(made.spec, rent=Rent(4.0, "plan.yaml")),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def page_of(made: RunResult, folder: Path) -> str:
    save(made, build(made), folder)
    return page(read_run(folder))


def test_the_page_shows_what_the_run_was_and_needs_nothing_else(tmp_path: Path) -> None:
    text = page_of(whole_run(), tmp_path)
    found = parsed(text)
    said = " ".join(found.texts)
    for words in (
        "SLO missed", "within the SLO", "per million output tokens within the SLO", "TTFT p50", "1 did not complete",
        "requests moved", "KV blocks in use", "Moves and preemptions", "GPU power", "Attainment", "In flight",
        "How exact the client was", "What the words mean", "status 500", "prefill", "decode", "abc-NUMBER",
    ):  # fmt: skip
        assert words in said, words
    assert text.count("<svg") == 13 and "prefers-color-scheme: dark" in text
    # Nothing that would be fetched, and nothing that would run.
    assert not {name for name, _ in found.attributes} & {"src", "href", "onclick", "xlink:href"}
    assert "<script" not in text and "url(" not in text and "@import" not in text and "<link" not in text
    assert len(text) < 120_000


def test_what_came_from_outside_is_no_markup(tmp_path: Path) -> None:
    made = whole_run()
    hostile = "<script>alert(1)</script>\"'><img src=x>"
    records = (replace(made.records[0], outcome=Outcome.SHED, detail=hostile, slo_class=hostile), *made.records[1:])
    watched = replace(made.watched, errors={hostile: 1})  # type: ignore[type-var]
    text = page_of(replace(made, records=records, watched=watched), tmp_path)
    assert "<script" not in text and "<img" not in text and hostile in " ".join(parsed(text).texts)


def test_a_run_without_anything_still_makes_a_page(tmp_path: Path) -> None:
    parsed(page_of(result([record([], Outcome.NO_CONNECTION)], Slo()), tmp_path))
    parsed(page(SavedRun(Document(run_id="x", verdict="no SLO", total=SummaryFigures()))))


def test_classes_and_promises_have_their_tables(tmp_path: Path) -> None:
    made = whole_run()
    records = tuple(replace(one, slo_class="chat" if one.number % 2 else "batch") for one in made.records)
    promises = (Promise("ttft", 99.0, 300.0), Promise("e2e", None, 2000.0))
    slos = {"chat": Slo(ttft_ms=500), "batch": Slo(e2e_ms=5000, promises=promises)}
    spec = replace(made.spec, slo=Slo(), class_slos=slos)
    text = page_of(replace(made, records=records, spec=spec), tmp_path)
    said = " ".join(parsed(text).texts)
    for words in ("chat: TTFT ≤ 500 ms", "p99 of ttft", "mean of e2e", "broken", "∞", "By class", "share of requests"):
        assert words in text or words in said, words


def test_a_cut_stream_keeps_the_curve_of_all_requests_below_100(tmp_path: Path) -> None:
    text = page_of(whole_run(), tmp_path)
    assert "all due" in text and 'stroke-dasharray="5 4"' in text
    good = page_of(result(some(20)), tmp_path / "good")
    assert "all due" not in good


def test_a_long_run_makes_no_huge_page(tmp_path: Path) -> None:
    text = page_of(result(some(5000, late=500)), tmp_path)
    assert len(text) < 400_000


CHAT, BATCH = Slo(ttft_ms=512, attainment=0.9), Slo(e2e_ms=5000, attainment=0.8)


@pytest.mark.parametrize(
    ("classes", "wanted"), [(["chat"], "wanted 90 %"), (["chat", "batch"], None), (["chat", "other"], None)]
)
def test_a_goal_is_drawn_where_it_is_that_of_all(classes: list[str], wanted: str | None, tmp_path: Path) -> None:
    """Of a file with two classes."""
    made = whole_run()
    records = tuple(replace(one, slo_class=classes[one.number % len(classes)]) for one in made.records)
    spec = replace(made.spec, slo=Slo(), class_slos={"chat": CHAT, "batch": BATCH})
    text = page_of(replace(made, records=records, spec=spec), tmp_path)
    assert "Attainment" in text and (wanted in text if wanted else ">wanted " not in text)
    assert ("SLO 512 ms" in text) is bool(wanted)


def test_the_distributions_leave_the_warm_up_out(tmp_path: Path) -> None:
    """The first 20 are slow, and due in it."""
    made = result(some(60, late=20))
    page_of(replace(made, spec=replace(made.spec, warmup_s=2.0)), tmp_path)
    run = read_run(tmp_path)
    assert curve_charts(run) == curve_charts(replace(run, records=run.records[20:]))
    assert "900" not in curve_charts(run)[0].svg and len(run.records) == 60


@pytest.mark.parametrize("wanted", [0.9, None])
def test_the_page_over_rates_bears_a_run_that_was_stopped_in_its_warm_up(wanted: float | None) -> None:
    good = result(some(60, late=6))
    stopped = replace(good, spec=replace(good.spec, warmup_s=99.0), interrupted=True)
    rows = [row_of(rate_rps, build(made), f"{rate_rps}.json") for rate_rps, made in ((2.0, good), (4.0, stopped))]
    rate_page = RatePage(title="t", statement="s", rows=rows, slo=Slo(ttft_ms=512), wanted=wanted)
    text = rate_page.html()
    parsed(text)
    assert "nan" not in text and "4.0.json" in text and "SLO 512 ms" in text
    assert ("90 % must" in text) is bool(wanted) and (" must<" in text) is bool(wanted)
    parsed(replace(rate_page, rows=rows[1:]).html())


@given(st.floats(1e-6, 1e9), st.floats(1.0001, 1e6))
def test_scales_keep_values_in_order_and_within_the_box(low: float, factor: float) -> None:
    high = low * factor
    for scale in (Linear(low, high, 100.0, 20.0), Log(low, high, 100.0, 20.0), for_latency(low, high, 100.0, 20.0)):
        places = [scale.place(value) for value in (low, (low + high) / 2, high)]
        assert places == sorted(places, reverse=True) and all(19.99 <= place <= 100.01 for place in places)
        assert all(19.9 <= scale.place(value) <= 100.1 for value, _ in scale.ticks())
        assert len(scale.ticks()) < 30


def test_ticks_are_round_numbers() -> None:
    assert [told for _, told in from_zero(95.0, 200.0, 0.0).ticks()] == ["0", "20", "40", "60", "80"]
    assert [told for _, told in from_zero(95.0, 0.0, 200.0).ticks()] == ["0", "50"]
    assert [told for _, told in Log(1.0, 1000.0, 0.0, 800.0).ticks()][:4] == ["1", "2", "5", "10"]
    assert [nice_step(rough) for rough in (0.11, 3.0, 7.0, 10.0)] == pytest.approx([0.2, 5, 10, 10])
    assert [short(value) for value in (0.0, 12.345, 1234.5, 0.05, float("inf"), float("nan"))] == [
        "0", "12.3", "1,234", "0.05", "∞", "–",
    ]  # fmt: skip


def test_points_on_one_place_are_drawn_once() -> None:
    plot = Plot(Box(), Linear(0, 10, 0, 100), Linear(0, 10, 100, 0), "x", "y", "a <b>")
    plot.dots([(1.0, 1.0), (1.001, 1.001), (5.0, 5.0), (6.0, math.nan)], "a")
    (path,) = re.findall(r'class="dots a" d="([^"]*)"', plot.text())
    plot.line([(2.0, math.nan)], "b")
    assert path == "M10 90h0M50 50h0" and "line b" not in plot.text() and "a &lt;b&gt;" in plot.text()
