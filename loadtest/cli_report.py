"""`ferry load report`, and what `ferry load run` does with the server, its price and the HTML page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.cli_options import OUTPUT
from loadtest.cli_shared import errors_as_exit_codes
from loadtest.cost import Rent
from loadtest.driver import Counts
from loadtest.endpoint import served_models
from loadtest.interrupts import Interrupts
from loadtest.moves import ASK_HEADER
from loadtest.page.page import page
from loadtest.remedies import asks_for_models
from loadtest.runner import run
from loadtest.saved import read_run
from loadtest.spec import RunResult, RunSpec
from loadtest.types import LoadTestError, Target
from loadtest.validate.prediction import rent_of_plan
from loadtest.watch.watcher import Watcher
from planner import read_plan

HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write the report as one HTML page too.", rich_help_panel=OUTPUT)
]
RentFlag = Annotated[
    float | None,
    typer.Option("--usd-per-hour", help="What the whole deployment costs: gives $ per token.", rich_help_panel=OUTPUT),
]
PlanPrice = Annotated[
    Path | None,
    typer.Option("--plan", help="A plan.yaml whose price counts, unless --usd-per-hour does.", rich_help_panel=OUTPUT),
]
AskMoves = Annotated[
    bool, typer.Option("--moves", help="Ask Ferry to tell each request's moves; keeps them.", rich_help_panel=OUTPUT)
]
NoWatch = Annotated[
    bool, typer.Option("--no-watch", help="Do not read the server's /metrics each second.", rich_help_panel=OUTPUT)
]


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    saved: Annotated[Path, typer.Argument(help="A folder of results (its newest run), or one load-….json.")],
    html: Annotated[Path | None, typer.Option(help="Where to write.", show_default="beside the report")] = None,
) -> None:
    """Make the HTML page of a run that was saved, or of results that were imported."""
    with errors_as_exit_codes():
        run = read_run(saved)
        name = f"load-{run.document.run_id}.html"
        file = html or (saved if saved.is_dir() else saved.parent) / name
        write_page(saved, file)


def run_watched(
    spec: RunSpec,
    on_progress: Callable[[Counts], None] | None,
    on_start: Callable[[int], None] | None = None,
    *,
    watch: bool,
    of_series: Interrupts | None = None,
) -> RunResult:
    """Run it and look at the server meanwhile, if `watch`. Raises LoadTestError when it could not start."""
    if not watch:
        return _with_models(run(spec, on_progress, on_start, of_series))
    with Watcher(spec.target) as watcher:
        result = run(spec, on_progress, on_start, of_series)
    return replace(_with_models(result), watched=watcher.taken())


def _with_models(result: RunResult) -> RunResult:
    """What the server names, where requests were answered as if the model were not there."""
    if result.interrupted or not asks_for_models(result.records):
        return result
    try:
        return replace(result, served=served_models(result.spec.target))
    except LoadTestError:
        return result  # it names none: the report says so


def asking_for_moves(target: Target) -> Target:
    """The same endpoint, asked to tell each request's moves. Others than Ferry do not mind."""
    return replace(target, headers=(*target.headers, ASK_HEADER))


def rent_of(usd_per_hour: float | None, plan: Path | None) -> Rent | None:
    """Raises LoadTestError and PlannerError."""
    if usd_per_hour is None and plan is not None:
        return rent_of_plan(read_plan(plan), plan.name)
    if usd_per_hour is not None and not usd_per_hour >= 0:
        raise LoadTestError(f"--usd-per-hour is {usd_per_hour}: it must be 0 or more")
    return Rent(usd_per_hour, "--usd-per-hour") if usd_per_hour is not None else None


def write_page(saved: Path, file: Path, title: str = "Load test") -> None:
    """The page of what was saved. Raises LoadTestError if it cannot be read or written."""
    text = page(read_run(saved), title)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error
    Console(stderr=True).print(f"page: {file}", markup=False, highlight=False, soft_wrap=True)
