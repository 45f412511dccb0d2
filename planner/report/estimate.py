"""One estimate as a table with what binds and how sure it is, and as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite

from rich.table import Table

from planner.perf.estimate import Estimate
from planner.report.values import milliseconds, plain

STATISTICS = ("mean", "p50", "p90", "p99")


def estimate_table(answer: Estimate) -> Table:
    """TTFT and TPOT in milliseconds."""
    table = Table("ms", "mean", "P50", "P90", "P99")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in (("TTFT", answer.ttft), ("TPOT", answer.tpot)):
        table.add_row(name, *(milliseconds(getattr(values, f"{which}_ms")) for which in STATISTICS))
    return table


def estimate_lines(answer: Estimate, *, devices: int) -> Iterator[str]:
    """What stands below the table."""
    yield (
        f"{answer.out_tok_s:,.1f} output tokens/s ({answer.out_tok_s / devices:,.1f} per device), "
        f"{answer.request_rate:.3g} requests/s, {answer.running:,.1f} sequences running of at most {answer.cap:,.0f}"
    )
    causes = sorted(answer.step_ms.items(), key=lambda cause: -cause[1])
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in causes if ms > 0)
    yield f"one decode step: {sum(answer.step_ms.values()):.2f} ms ({parts})"
    yield f"what binds: {answer.limit}"
    yield (
        f"how sure: {answer.rung}; TPOT ± {answer.sigma.tpot:.0%}, TTFT ± {answer.sigma.ttft:.0%} (one sigma); "
        "TPOT is (last token - first token) / (tokens - 1)"
    )


def estimate_tree(answer: Estimate, *, devices: int) -> object:
    """For programs."""
    return plain(
        asdict(answer)
        | {"devices": devices, "out_tok_s_per_device": answer.out_tok_s / devices, "servable": servable(answer)}
    )


def servable(answer: Estimate) -> bool:
    """Whether the load can be served at all: where it cannot, requests wait longer and longer."""
    return isfinite(answer.ttft.mean_ms)
