"""`ferry load compare A B`: two saved runs. Exit code 1 if B is worse in any, unless `--fail-on never`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest import cli_options as flags
from loadtest.cli_shared import errors_as_exit_codes
from loadtest.metrics import in_window
from loadtest.options import parse_slo
from loadtest.rates.compare import Change, Compared, compare
from loadtest.saved import read_run
from loadtest.types import LoadTestError, Record

STYLES = {Change.BETTER: "green", Change.WORSE: "red", Change.UNCLEAR: ""}

RunA = Annotated[Path, typer.Argument(help="A saved run: load-….json, or a folder (its newest).")]
RunB = Annotated[Path, typer.Argument(help="The run to compare with it.")]
FailOn = Annotated[Literal["worse", "never"], typer.Option(help="When to exit with 1.")]
Confidence = Annotated[float, typer.Option(help="Of each interval.")]
Seed = Annotated[int, typer.Option(help="Of the resampling.", min=0)]


def register(app: typer.Typer) -> None:
    app.command("compare")(compare_)


def compare_(
    a: RunA,
    b: RunB,
    goodput: flags.Goodput = None,
    confidence: Confidence = 0.95,
    fail_on: FailOn = "worse",
    seed: Seed = 0,
    as_json: flags.AsJson = False,
) -> None:
    """Say what is better or worse in B than in A, and what may be chance."""
    with errors_as_exit_codes():
        if not 0 < confidence < 1:
            raise LoadTestError(f"--confidence is {confidence:g}: it is a share between 0 and 1")
        slo = parse_slo(goodput or (), 0.95)
        found = compare(_counted(a), _counted(b), slo, confidence=confidence, seed=seed)
        _show(found, Console(stderr=as_json), confidence)
        if as_json:
            tree = asdict(found)
            for row, one in zip(tree["differences"], found.differences, strict=True):
                row["change"] = one.change.value
            typer.echo(json.dumps({"format": "ferry-compare/1", "confidence": confidence, **tree}))
        raise typer.Exit(1 if found.worse and fail_on == "worse" else 0)


def _counted(path: Path) -> list[Record]:
    """The records of the run that count: not those of its warm-up. Raises LoadTestError if there is none."""
    run = read_run(path)
    if not run.records:
        raise LoadTestError(f"{path} has no records beside it: only runs of `ferry load` can be compared")
    records = in_window(run.records, 0, run.document.warmup_s)
    if not records:
        raise LoadTestError(f"{path} was over before its --warmup-s was: none of its requests counts")
    return records


def _show(found: Compared, console: Console, confidence: float) -> None:
    how = "request by request" if found.paired else "as two unlike loads"
    title = f"B against A, {found.requests[1]} and {found.requests[0]} requests, compared {how}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in ("metric", "A", "B", "B - A", f"{confidence:.0%} interval", ""):
        table.add_column(head, justify="left" if head in ("metric", "") else "right", no_wrap=True)
    for one in found.differences:
        digits = ".1f" if one.lower_is_better else ".2%"
        cells = [f"{value:{digits}}" for value in (one.a, one.b, one.b - one.a)]
        interval = f"{one.low:+{digits}} to {one.high:+{digits}}"
        table.add_row(
            one.metric, *cells, interval, f"[{STYLES[one.change]}]{one.change}" if STYLES[one.change] else one.change
        )
    console.print(table)
