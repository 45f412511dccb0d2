"""The whole page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from loadtest.document import Document
from loadtest.page import tables
from loadtest.page.charts import Chart, curve_charts, run_charts
from loadtest.page.server_charts import server_charts
from loadtest.page.style import STYLE
from loadtest.page.tables import figure
from loadtest.saved import SavedRun

_VERDICT_CLASS = {"met": "met", "missed": "missed", "INVALID": "invalid"}


def page(run: SavedRun, title: str = "Load test") -> str:
    """One HTML document."""
    document = run.document
    sections = [
        _head(document, title),
        _tiles(document),
        _warnings(document),
        _section("Latencies", tables.metrics_table(document.total) + _note_of_all(document)),
        _section("Outcomes", tables.outcomes_table(document.total)),
        _section("By class", tables.classes_table(document)),
        _section("Promises of all requests together", tables.promises_table(document)),
        _section("The drill", tables.drill_tables(document.drill)) if document.drill is not None else "",
        _section("Over time", _figures(run_charts(run))),
        _section("Distributions", _figures(curve_charts(run))),
        _section("The server", _figures(server_charts(run)) + tables.server_tables(document)),
        _section("How exact the client was", tables.client_table(document)),
        _section("What the words mean", tables.definitions_table(document)),
        _section("Where this comes from", _source(document)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} {escape(document.run_id)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _head(document: Document, title: str) -> str:
    verdict = document.verdict
    said = f"SLO {verdict}" if verdict in ("met", "missed") else verdict
    if verdict in ("met", "missed") and not document.certain:
        said += ", but too few requests to be sure at 95 %"
    when = (
        datetime.fromtimestamp(document.started_at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if document.started_at_s is not None
        else "date unknown"
    )
    where = document.spec.get("base_url")
    told = [f"run <code>{escape(document.run_id)}</code>", escape(when)]
    if where:
        told.append(f"<code>{escape(str(where))}{escape(str(document.spec.get('endpoint', '')))}</code>")
    return (
        f"<h1>{escape(title)}</h1><p class='soft'>{' · '.join(told)}</p>"
        f"<p><span class='verdict {_VERDICT_CLASS.get(verdict, 'none')}'>{escape(said)}</span> {_slo(document)}</p>"
    )


def _slo(document: Document) -> str:
    own = document.spec.get("class_slos") or {}
    each = [("", document.spec.get("slo") or {}), *own.items()]
    return "; ".join(f"{escape(name)}{': ' if name else ''}{told}" for name, slo in each if (told := _limits(slo)))


def _limits(slo: Mapping[str, Any]) -> str:
    names = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "E2E", "max_gap_ms": "longest gap"}
    limits = [f"{names[key]} ≤ {slo[key]:g} ms" for key in names if slo.get(key) is not None]
    if not limits:
        return ""
    return f"{', '.join(limits)}, by at least {100 * slo.get('attainment', 0):g} % of the requests due"


def _tiles(document: Document) -> str:
    total = document.total
    ttft, tpot = total.metrics.get("ttft"), total.metrics.get("tpot")
    tiles = []
    met = total.attainment
    if met is not None and met.share is not None:
        between = f"within the SLO: {met.met} of {met.due} (95 %: {100 * met.low:.1f} to {100 * met.high:.1f})"
        tiles.append((f"{100 * met.share:.2f} %", between))
        tiles.append((figure(total.goodput_rps, "/s"), "goodput: requests within the SLO"))
    tiles.append((figure(total.completed_rps, "/s"), f"completed, of {figure(total.due_rps, '/s')} due"))
    tiles.append((figure(total.output_tokens_per_s, "/s"), "output tokens"))
    if ttft is not None:
        told = f"TTFT p50; p99 {figure(ttft.completed_ms.get('p99'), 'ms')}"
        tiles.append((figure(ttft.completed_ms.get("p50"), "ms"), told))
    if tpot is not None:
        told = f"TPOT p50; p99 {figure(tpot.completed_ms.get('p99'), 'ms')}"
        tiles.append((figure(tpot.completed_ms.get("p50"), "ms"), told))
    lengths = f"{figure(total.mean_prompt_tokens)} + {figure(total.mean_output_tokens)}"
    tiles.append((lengths, "mean prompt and output tokens"))
    if document.moves is not None:
        moves = document.moves
        told = (
            f"requests moved ({moves.kv} moves with KV, {moves.replay} by replay; longest gap "
            f"{figure(moves.gap_max_ms, 'ms')}), beside {moves.handovers} hand-overs after the prefill"
        )
        tiles.append((str(moves.requests), told))
    if document.cost is not None:
        cost = document.cost
        tiles.append(
            (
                f"${figure(cost.usd_per_million_good_tokens)}",
                f"per million output tokens within the SLO; ${figure(cost.usd_per_million_tokens)} per million of all, "
                f"at ${cost.usd_per_hour:.2f}/h ({escape(cost.source)})",
            )
        )
    shown = "".join(f'<div class="tile"><b>{value}</b><span>{said}</span></div>' for value, said in tiles)
    return f'<div class="tiles">{shown}</div>'


def _warnings(document: Document) -> str:
    parts = [f'<p class="fault">INVALID: {escape(fault)}</p>' for fault in document.faults]
    if document.interrupted:
        parts.append('<p class="warn">Interrupted: the figures are of what was seen until then.</p>')
    parts += [f'<p class="warn">{escape(warning)}</p>' for warning in document.warnings]
    if document.missing:
        told = escape(", ".join(document.missing))
        parts.append(f'<p class="warn">Missing, since the source does not say it: {told}.</p>')
    return "".join(parts)


def _note_of_all(document: Document) -> str:
    if not any(found.all_ms for found in document.total.metrics.values()):
        return ""
    return '<p class="soft">“all” counts what did not complete as infinitely late; other columns leave it out.</p>'


def _figures(charts: list[Chart]) -> str:
    wide = "".join(chart.html() for chart in charts if not chart.half)
    half = "".join(chart.html() for chart in charts if chart.half)
    return wide + (f'<div class="pair">{half}</div>' if half else "")


def _source(document: Document) -> str:
    source = document.source
    if source is None:
        return (
            f"<p>Measured by <code>ferry load</code>, document <code>{escape(document.format)}</code>. Each request "
            f"went out with the header <code>x-request-id: {escape(document.run_id)}-NUMBER</code>, by which "
            "the server's logs can be joined.</p>"
        )
    notes = "".join(f"<p class='soft'>{escape(note)}</p>" for note in source.notes)
    return f"<p>Imported from {escape(source.tool)} {escape(source.version or '(version unknown)')}.</p>{notes}"


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""
