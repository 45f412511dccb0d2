"""The tables and lists of the page, as HTML text. Pure. Everything that came from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from loadtest.document import Document, SummaryFigures
from loadtest.drill.report import DrillReport, Latencies, extra_cost
from loadtest.drill.texts import TextCheck, TextVerdict
from loadtest.page.scale import short

SHOWN = ("p50", "p90", "p95", "p99")
MISSING = "–"
MAX_TOUCHED_ROWS = 50


def figure(value: float | None, unit: str = "") -> str:
    """Three digits and the unit; a dash for what is missing, which is not 0."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{short(value)} {unit}".rstrip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: Iterable[int] = ()) -> str:
    """Cells are HTML already. Columns in `words` hold text and not figures."""
    as_words = set(words)

    def cells(row: Sequence[str], tag: str) -> str:
        kind = [' class="words"' if n in as_words else "" for n in range(len(row))]
        return "".join(f"<{tag}{kind[n]}>{cell}</{tag}>" for n, cell in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells(head, "th")}</tr>{body}</table></div>'


def metrics_table(summary: SummaryFigures) -> str:
    head = ["ms", "mean", *SHOWN, "max", *(f"all {share}" for share in SHOWN)]
    rows = [
        [
            f"<b>{escape(name)}</b>",
            figure(found.mean_ms),
            *(figure(found.completed_ms.get(share)) for share in SHOWN),
            figure(found.max_ms),
            *(figure(found.all_ms.get(share)) for share in SHOWN),
        ]
        for name, found in summary.metrics.items()
    ]
    return table(head, rows) if rows else '<p class="soft">No metric of latency is in this document.</p>'


def outcomes_table(summary: SummaryFigures) -> str:
    rows = [
        [escape(outcome), str(count), escape(summary.failures.get(outcome, ""))]
        for outcome, count in sorted(summary.outcomes.items(), key=lambda item: -item[1])
    ]
    return table(("outcome", "requests", "for example"), rows, words=[2]) if rows else ""


def classes_table(document: Document) -> str:
    rows = []
    for name, summary in document.classes.items():
        met = summary.attainment
        ttft, tpot = summary.metrics.get("ttft"), summary.metrics.get("tpot")
        rows.append(
            [
                escape(name or "(none)"),
                figure(summary.due),
                f"{100 * met.share:.2f} %" if met is not None and met.share is not None else MISSING,
                figure(summary.goodput_rps, "/s"),
                figure(ttft.completed_ms.get("p99") if ttft else None),
                figure(tpot.completed_ms.get("p99") if tpot else None),
            ]
        )
    return table(("class", "due", "within the SLO", "goodput", "TTFT p99, ms", "TPOT p99, ms"), rows) if rows else ""


def promises_table(document: Document) -> str:
    """What is promised of all requests of a class together."""
    rows = [
        [
            escape(name or "all"),
            f"{_statistic(one.promise.percentile)} of {escape(one.promise.metric)}",
            figure(one.promise.limit_ms, "ms"),
            figure(one.measured_ms, "ms"),
            ("kept" if one.kept else "broken") + ("" if one.certain else ", not sure at 95 %"),
        ]
        for name, judged in document.judged.items()
        for one in judged.promises
    ]
    return table(("class", "promise", "at most", "measured", ""), rows, words=[4]) if rows else ""


def server_tables(document: Document) -> str:
    server = document.server
    if server is None:
        return ""
    parts = []
    if server.pools:
        rows = [
            [
                escape(pool or "all"),
                str(found.engines_most),
                figure(found.running_max),
                figure(found.waiting_max),
                _percent(found.kv_share_mean),
                _percent(found.kv_share_max),
            ]
            for pool, found in server.pools.items()
        ]
        parts.append(table(("pool", "engines", "running, most", "waiting, most", "KV, mean", "KV, most"), rows))
    counted = [[escape(name), f"{value:,.0f}"] for name, value in server.counted.items()]
    counted += [[f"moves: {escape(name)}", f"{value:,.0f}"] for name, value in server.moves.items()]
    if counted:
        parts.append(table(("counted during the run", ""), counted))
    gpus = [
        [
            escape(f"{index}: {gpu.name}"),
            _percent(gpu.busy_mean_share),
            figure(gpu.memory_max_bytes / 2**30 if gpu.memory_max_bytes is not None else None, "GiB"),
            figure(gpu.power_mean_w, "W"),
            figure(gpu.energy_j / 3600 if gpu.energy_j is not None else None, "Wh"),
        ]
        for index, gpu in server.gpus.items()
    ]
    if gpus:
        parts.append(table(("GPU of the client's machine", "busy", "memory", "power", "energy"), gpus))
    if not server.pools and not counted and server.scrapes:
        parts.append('<p class="soft">Nothing in its /metrics is a series that this page knows.</p>')
    errors = "; ".join(f"{escape(told)} ({count} times)" for told, count in server.errors.items())
    parts.append(
        f'<p class="soft">{server.scrapes} scrapes of /metrics, the slowest took {server.scrape_max_ms:.0f} ms'
        f"{f'. Failed: {errors}' if errors else ''}.</p>"
    )
    return "".join(parts)


def drill_tables(drill: DrillReport) -> str:
    limits = " ".join(
        f"A stream{f' of class {escape(name)}' if name else ''} counts as harmed above {figure(harm.ttft_ms, 'ms')} to "
        f"its first token or {figure(harm.gap_ms, 'ms')} between two tokens, and if it does not complete."
        for name, harm in drill.harms.items()
    )
    parts = [f'<p class="soft">{limits}</p>', _actions_table(drill), _phases_table(drill)]
    if drill.undone:
        parts.append(f'<p class="warn">Not done, since the load had ended: {escape(", ".join(drill.undone))}.</p>')
    if drill.extra_usd is not None:
        parts.append(f"<p>Extra cost: {escape(extra_cost(drill.extra_usd))}.</p>")
    if drill.texts is not None:
        parts.append(_texts(drill.texts))
    if drill.touched:
        rows = [
            [
                str(one.number),
                escape(one.outcome),
                figure(one.ttft_ms),
                figure(one.longest_gap_ms),
                MISSING if one.moves is None else escape(", ".join(one.moves) or "none"),
                f"<code>{escape(one.request_id)}</code>",
                escape(one.detail),
            ]
            for one in drill.touched[:MAX_TOUCHED_ROWS]
        ]
        more = f", of which the first {MAX_TOUCHED_ROWS} are here" if drill.touched_count > MAX_TOUCHED_ROWS else ""
        head = ("#", "outcome", "TTFT, ms", "longest gap, ms", "moves", "request id", "detail")
        told = f"<summary>{drill.touched_count} streams were moved or harmed{more}</summary>"
        parts.append(f"<details>{told}{table(head, rows, words=[5, 6])}</details>")
    return "".join(parts)


def _actions_table(drill: DrillReport) -> str:
    rows = []
    for one in drill.actions:
        action, streams, healed = one.action, one.streams, one.recovery
        moved = "not told" if streams.moves is None else str(streams.moves.requests)
        rows.append(
            [
                escape(action.what),
                f"{action.began_s:.1f} s",
                "done" if action.ok else f'<span class="fault">failed: {escape(action.told)}</span>',
                str(streams.open),
                moved,
                str(streams.lost),
                str(streams.cut),
                figure(streams.longest_gap.max_ms, "ms"),
                "not seen" if healed.after_s is None else f"{healed.after_s:.1f} s",
            ]
        )
    head = ("action", "at", "", "open streams", "moved", "lost", "of them cut", "longest gap", "recovered after")
    return table(head, rows, words=[2])


def _phases_table(drill: DrillReport) -> str:
    rows = []
    for phase in drill.phases:
        ok = phase.outcomes.get("ok", 0)
        rows.append(
            [
                escape(phase.name),
                f"{phase.from_s:.1f} – {phase.until_s:.1f} s",
                str(phase.due),
                str(phase.due - ok),
                MISSING if phase.met is None or not phase.due else f"{100 * phase.met / phase.due:.1f} %",
                _pair(phase.ttft),
                _pair(phase.tpot),
                _pair(phase.gap),
                figure(phase.gap.max_ms),
            ]
        )
    head = ("phase", "", "due", "not completed", "within the SLO", "TTFT p50 / p99", "TPOT p50 / p99", "gap p50 / p99")
    return table((*head, "gap max, ms"), rows)


def _texts(check: TextCheck) -> str:
    kinds = [verdict.value for verdict in TextVerdict]
    found = {"drill": check.drill, "of them moved": check.moved, "undisturbed again": check.control}
    rows = [
        [name, *(str(counts.get(kind, 0)) for kind in kinds)] for name, counts in found.items() if counts is not None
    ]
    told = "no second undisturbed run says how much of this is usual"
    if check.excess is not None:
        told = f"the drill's share of inexact texts is {100 * check.excess:+.1f} points from that of an undisturbed run"
    return f"<p>Texts against an undisturbed run of the same requests; {told}.</p>{table(('', *kinds), rows)}"


def client_table(document: Document) -> str:
    """What the client says of itself. Documents of other tools have none of it."""
    client = document.client
    if client is None:
        return '<p class="soft">The source does not say how exact its client was.</p>'
    workers = client.get("workers") or []
    rows = [
        [
            str(number),
            _percent(worker["cpu_s"] / worker["wall_s"] if worker.get("wall_s") else None),
            _percent(worker.get("peak_cpu_share")),
            _percent(worker["cpu_wait_s"] / worker["wall_s"] if worker.get("wall_s") else None),
            figure(worker.get("stall_p99_ms")),
            figure(worker.get("stall_max_ms")),
            figure(worker.get("peak_rss_bytes", 0) / 1e6, "MB"),
            str(worker.get("peak_in_flight", MISSING)),
        ]
        for number, worker in enumerate(workers)
    ]
    head = (
        "worker",
        "CPU",
        "CPU, peak",
        "waited for CPU",
        "stall p99, ms",
        "stall max, ms",
        "memory",
        "in flight, most",
    )
    lag = (
        f"Sent late by {figure(client.get('lag_p50_ms'), 'ms')} at the median, "
        f"{figure(client.get('lag_p99_ms'), 'ms')} at p99, {figure(client.get('lag_max_ms'), 'ms')} at most; "
        f"{client.get('sent')} of {client.get('due')} due requests were sent, {_percent(client.get('reused_share'))} "
        "of them on a reused connection."
    )
    return f"<p>{lag}</p>{table(head, rows)}"


def definitions_table(document: Document) -> str:
    rows = [[f"<b>{escape(name)}</b>", escape(meaning)] for name, meaning in document.definitions.items()]
    return table(("name", "what it is"), rows, words=[1]) if rows else ""


def _statistic(percentile: float | None) -> str:
    return "mean" if percentile is None else f"p{percentile:g}"


def _pair(latencies: Latencies) -> str:
    return f"{figure(latencies.p50_ms)} / {figure(latencies.p99_ms)}"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"
