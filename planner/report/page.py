"""An answer as one HTML file that needs nothing else: the plot, the plans, why, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from planner.plan import Plan
from planner.report.answers import candidates, pools_text, tightest
from planner.report.values import milliseconds
from planner.search.answers import Answer

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
svg { width: 100%; height: auto; }
code { display: block; white-space: pre-wrap; background: #f6f6f6; padding: .4rem .6rem; margin: .3rem 0; }"""
COLUMNS = ("", "plan", "GPUs", "USD/h", "TTFT P50 ms", "TTFT P99 ms", "TPOT P50 ms", "TPOT P99 ms", "P(SLO met)")


def page(answer: Answer, picture: str, *, title: str) -> str:
    """The whole file. `picture` is an SVG element."""
    plan = answer.cheapest.plan
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        picture,
        _table(answer),
        "<h2>The cheapest plan</h2>",
        *(_pool(name, plan) for name in plan.pools),
        _list(plan.why),
        "<h2>What would change it</h2>",
        _list(change.text for change in answer.changes),
        "<h2>Doubts</h2>",
        _list([_sureness(plan), *answer.warnings, *plan.warnings]),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(answer: Answer) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(column)}</th>" for column in COLUMNS) + "</tr>"]
    for one, aims in candidates(answer):
        worst = tightest(one.plan)
        tpot = worst.tpot_ms
        cells = (
            ", ".join(aims),
            pools_text(one.plan),
            f"{one.plan.devices:g}",
            f"{one.usd_per_hour:.2f}",
            milliseconds(worst.ttft_ms.p50),
            milliseconds(worst.ttft_ms.p99),
            milliseconds(tpot.p50) if tpot else "",
            milliseconds(tpot.p99) if tpot else "",
            f"{one.probability:.0%}",
        )
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _pool(name: str, plan: Plan) -> str:
    flags = " ".join(plan.pools[name].engine.flags)
    return f"<p>{escape(name)}</p><code>vllm serve {escape(plan.model)} {escape(flags)}</code>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _sureness(plan: Plan) -> str:
    told = plan.prediction
    return (
        f"step times from {told.rung}: TPOT ± {told.tpot_sigma:.0%}, TTFT ± {told.ttft_sigma:.0%} (one sigma); "
        f"latencies {told.method}"
    )
