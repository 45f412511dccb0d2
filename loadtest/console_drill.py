"""A drill's report as a person reads it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.drill.report import ActionReport, DrillReport, extra_cost
from loadtest.drill.texts import TextCheck


def show_drill(drill: DrillReport, console: Console) -> None:
    """What was done, what became of the streams, and the phases."""
    _show_phases(drill, console)
    for one in drill.actions:
        for number, line in enumerate(_action_lines(one)):
            console.print(
                line, style="" if one.action.ok or number else "red", markup=False, highlight=False, soft_wrap=True
            )
    if drill.undone:
        told = ", ".join(drill.undone)
        console.print(f"not done, since the load had ended: {told}", style="red", markup=False, highlight=False)
    if drill.extra_usd is not None:
        console.print(f"extra cost: {extra_cost(drill.extra_usd)}", markup=False, highlight=False, soft_wrap=True)
    if drill.texts is not None:
        _show_texts(drill.texts, console)
    for name, harm in drill.harms.items():
        of_class = f", of class {name}," if name else ""
        told = (
            f"harmed{of_class} means: above {_ms(harm.ttft_ms)} ms to the first token, above {_ms(harm.gap_ms)} ms "
            "between two tokens, or not completed"
        )
        console.print(told, style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{drill.touched_count} streams were harmed or moved", highlight=False)


def _show_phases(drill: DrillReport, console: Console) -> None:
    table = Table(title="phases, ms", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in (
        "phase",
        "from",
        "until",
        "due",
        "broken",
        "SLO",
        "TTFT p50",
        "p99",
        "TPOT p50",
        "p99",
        "gap p99",
        "max",
    ):
        table.add_column(head, justify="left" if head == "phase" else "right", no_wrap=True)
    for phase in drill.phases:
        met = "-" if phase.met is None or not phase.due else f"{phase.met / phase.due:.0%}"
        broken = str(phase.due - phase.outcomes.get("ok", 0))
        latencies = (
            phase.ttft.p50_ms,
            phase.ttft.p99_ms,
            phase.tpot.p50_ms,
            phase.tpot.p99_ms,
            phase.gap.p99_ms,
            phase.gap.max_ms,
        )
        span = (f"{phase.from_s:.1f} s", f"{phase.until_s:.1f} s")
        table.add_row(phase.name, *span, str(phase.due), broken, met, *(_ms(value) for value in latencies))
    console.print(table)


def _action_lines(one: ActionReport) -> list[str]:
    action, streams, healed = one.action, one.streams, one.recovery
    lines = [f"{action.began_s:.1f} s: {action.what}: {'done' if action.ok else 'FAILED'}, {action.told}"]
    if action.emptied_s is not None:
        lines.append(f"  it had nothing left to do after {action.emptied_s - action.began_s:.1f} s")
    moved = "the server told nothing of moves"
    if streams.moves is not None:
        moved = f"{streams.moves.requests} moved ({streams.moves.kv} with KV, {streams.moves.replay} by replay)"
    longest = streams.longest_gap
    lines.append(
        f"  {streams.open} streams were open: {streams.completed} completed, {streams.lost} lost, {streams.cut} of "
        f"them cut; {moved}; longest gap {_ms(longest.max_ms)} ms (p50 {_ms(longest.p50_ms)})"
    )
    if healed.after_s is None:
        lines.append("  recovery was not seen before the run ended or the next action came")
    elif healed.disturbed_s:
        lines.append(
            f"  recovered after {healed.after_s:.1f} s; {healed.disturbed_s} s were disturbed, at worst "
            f"{healed.harmed_most} requests were harmed at once"
        )
    else:
        lines.append("  no second was worse than before it")
    return lines


def _show_texts(check: TextCheck, console: Console) -> None:
    for name, counts in (("drill", check.drill), ("of them moved", check.moved), ("undisturbed again", check.control)):
        if counts is not None:
            told = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
            console.print(f"texts, {name}: {told}", markup=False, highlight=False, soft_wrap=True)
    if check.excess is not None:
        console.print(f"  inexact beyond what is usual: {100 * check.excess:+.1f} points", highlight=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
