"""The report as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.calibrate import Point
from loadtest.console_server import show_cost, show_moves, show_server
from loadtest.driver import Counts
from loadtest.judge import Judged
from loadtest.metrics import DEFINITIONS, Summary
from loadtest.report import Report, Verdict
from loadtest.types import Outcome

# Of all that is saved, so many fit into 80 columns.
SHOWN = (0.5, 0.9, 0.99)

_STYLES = {Verdict.MET: "bold green", Verdict.MISSED: "bold red", Verdict.INVALID: "bold white on red"}


def show(report: Report, console: Console) -> None:
    """Everything but the raw records."""
    _show_summary(report.total, "all requests", console)
    for name, summary in report.classes.items():
        _show_summary(summary, f"class {name or '(none)'}", console)
    show_moves(report.moves, console)
    show_server(report.server, console)
    show_cost(report.cost, console)
    _show_client(report, console)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    _show_verdict(report, console)


def show_definitions(console: Console) -> None:
    table = Table("name", "what it is", title="definitions", title_justify="left", box=None, padding=(0, 2))
    for name, meaning in DEFINITIONS.items():
        table.add_row(name, meaning)
    console.print(table)


def show_point(point: Point, console: Console) -> None:
    """One line of a calibration."""
    errors = "  ".join(f"{name} {error.mean_ms:+.2f} / {error.p99_ms:.2f}" for name, error in point.error.items())
    console.print(
        f"{point.name:>16}  {errors} ms  lag p99 {point.lag_p99_ms:.2f} ms  client {point.client_cpu_share:.0%} of a "
        f"core, {point.peak_rss_bytes / 1e6:.0f} MB  server late p99 {point.server_late_p99_ms:.2f} ms",
        style="" if point.good else "red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def progress_line(console: Console) -> Callable[[Counts], None]:
    """A line that is written over on a terminal, and nothing elsewhere."""

    def tell(counts: Counts) -> None:
        if console.is_terminal:
            console.print(
                f"sent {counts.sent}, ended {counts.ended}, broken {counts.failed}, in flight {counts.in_flight}   ",
                end="\r",
                highlight=False,
            )

    return tell


def _show_summary(summary: Summary, title: str, console: Console) -> None:
    table = Table(title=f"{title}, ms", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("metric")
    for head in ("mean", *(f"p{100 * q:g}" for q in SHOWN), "max", *(f"all p{100 * q:g}" for q in SHOWN)):
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in summary.distributions.items():
        completed = [_ms(found.completed_ms[q]) for q in SHOWN]
        table.add_row(name, _ms(found.mean_ms), *completed, _ms(found.max_ms), *(_ms(found.all_ms[q]) for q in SHOWN))
    if summary.distributions:
        console.print(table)
    outcomes = ", ".join(f"{count} {outcome.value}" for outcome, count in sorted(summary.outcomes.items()))
    lines = [f"{summary.due} due in {summary.window_s:.1f} s: {outcomes}"]
    lines += [f"  {outcome.value}: {detail}" for outcome, detail in summary.details.items()]
    lines.append(
        f"offered {summary.due_rps:.2f} requests/s, completed {summary.completed_rps:.2f}, "
        f"{summary.output_tokens_per_s:.1f} output tokens/s; a mean of {_count(summary.prompt_tokens)} prompt and "
        f"{_count(summary.output_tokens)} output tokens"
    )
    if summary.attainment is not None:
        found_share, shed = summary.attainment, summary.outcomes.get(Outcome.SHED, 0)
        lines.append(
            f"SLO met by {found_share.met} of {found_share.due}: {found_share.share:.2%} "
            f"(95 %: {found_share.low:.2%} to {found_share.high:.2%}), {shed} shed; "
            f"goodput {summary.goodput_rps:.2f} requests/s"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_client(report: Report, console: Console) -> None:
    audit = report.audit
    lines = [
        f"client: lag p50 {audit.lag_p50_ms:.2f}, p99 {audit.lag_p99_ms:.2f}, max {audit.lag_max_ms:.2f} ms; "
        f"{audit.sent} of {audit.due} due were sent; {audit.reused_share:.0%} on a reused connection"
    ]
    for number, worker in enumerate(audit.workers):
        lines.append(
            f"  worker {number}: {worker.cpu_share:.0%} of a core (peak {worker.peak_cpu_share:.0%}), waited for "
            f"one {worker.cpu_wait_share:.1%}; "
            f"loop stalls p99 {worker.stall_p99_ms:.2f}, max {worker.stall_max_ms:.2f} ms; "
            f"{worker.peak_rss_bytes / 1e6:.0f} MB; {worker.opened} connections opened, {worker.resent} resent"
        )
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _show_verdict(report: Report, console: Console) -> None:
    for fault in report.faults:
        console.print(f"INVALID: {fault}", style=_STYLES[Verdict.INVALID], markup=False, highlight=False)
    if report.interrupted:
        console.print("interrupted: the figures are of what was seen so far", style="yellow")
    for name, judged in report.judged.items():
        _show_judged(f"class {name}" if name else "SLO", judged, console, several=len(report.judged) > 1)
    if report.verdict in (Verdict.MET, Verdict.MISSED):
        doubt = "" if report.certain else " (too few requests to be sure at 95 %)"
        console.print(f"SLO {report.verdict.value}{doubt}", style=_STYLES[report.verdict], markup=False)


def _show_judged(name: str, judged: Judged, console: Console, *, several: bool) -> None:
    """What is promised of all requests together, and the class's own verdict where there are others."""
    for one in judged.promises:
        what = "mean" if one.promise.percentile is None else f"p{one.promise.percentile:g}"
        console.print(
            f"{name}: {what} of {one.promise.metric} is {_ms(one.measured_ms)} ms, promised {one.promise.limit_ms:g}: "
            f"{'kept' if one.kept else 'broken'}{'' if one.certain else ' (not sure at 95 %)'}",
            style="" if one.kept else "red",
            markup=False,
            highlight=False,
        )
    if several:
        verdict = Verdict.MET if judged.met else Verdict.MISSED
        doubt = "" if judged.certain else " (not sure at 95 %)"
        console.print(f"{name}: {verdict.value}{doubt}", style=_STYLES[verdict], markup=False, highlight=False)


def _ms(value: float) -> str:
    """Five digits or so: more are noise."""
    if math.isnan(value):
        return "-"
    return "inf" if math.isinf(value) else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def _count(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1f}"
