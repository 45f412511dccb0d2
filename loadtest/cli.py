"""`ferry load`: measure an endpoint, and what this machine can measure.

Exit codes: 0 the SLO is met (or none was given), 1 it is missed, 2 the test could not run or its results could not be
saved, or not one request completed and there was no SLO to miss, 3 the run is INVALID: the client was the limit,
130 it was interrupted (Ctrl-C, SIGTERM): what was seen until then is saved.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest import cli_compare, cli_drill, cli_exchange, cli_report, cli_search, cli_validate
from loadtest import cli_options as flags
from loadtest.calibrate import RATES_RPS, STREAMS, calibrate
from loadtest.cli_groups import GoalFlags, LimitFlags, RequestFlags, TargetFlags, TimesFlags, grouped, plan_of
from loadtest.cli_report import (
    AskMoves,
    HtmlFile,
    NoWatch,
    PlanPrice,
    RentFlag,
    asking_for_moves,
    rent_of,
    run_watched,
    write_page,
)
from loadtest.cli_shared import CANNOT_RUN, code_of_run, errors_as_exit_codes, tell_error
from loadtest.console import progress_line, show, show_definitions, show_point
from loadtest.load import load_for
from loadtest.report import as_json as as_json_tree
from loadtest.report import build
from loadtest.results import check_folder, save
from loadtest.spec import RunSpec
from loadtest.truth import TruthConfig

load_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure an endpoint: `run` it, `calibrate` this machine."
)

cli_report.register(load_app)
cli_exchange.register(load_app)
cli_drill.register(load_app)
cli_validate.register(load_app)
cli_search.register(load_app)
cli_compare.register(load_app)


@load_app.command()
@grouped
def run(
    where: TargetFlags,
    times: TimesFlags,
    requests: RequestFlags,
    goal: GoalFlags,
    bounds: LimitFlags,
    save_dir: flags.SaveDir = Path("results"),
    as_json: flags.AsJson = False,
    keep_text: flags.KeepText = False,
    html: HtmlFile = None,
    usd_per_hour: RentFlag = None,
    price_plan: PlanPrice = None,
    moves: AskMoves = False,
    no_watch: NoWatch = False,
) -> None:
    """Send a load, and judge it against the SLO. Ctrl-C ends it early and keeps what was seen."""
    with errors_as_exit_codes():
        check_folder(save_dir)
        target = asking_for_moves(where.target()) if moves else where.target()
        slo, class_slos = goal.slos()
        load = load_for(plan_of(where, times, requests, goal), target)
        spec = RunSpec(
            target,
            load.jobs,
            bounds.limits(times),
            slo,
            bounds.crew[0],
            times.warmup_s,
            load.lasts_s,
            ray_address=bounds.crew[1],
            keep_text=keep_text,
            class_slos=class_slos,
            rent=rent_of(usd_per_hour, price_plan),
        )
        raise typer.Exit(_run_and_tell(spec, load.notes, save_dir, as_json, html, watch=not no_watch))


@load_app.command("calibrate")
def calibrate_(
    streams: Annotated[list[int] | None, typer.Option(help="Closed loops to try; repeat it.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Open loops to try, in requests/s; repeat it.")] = None,
    seconds: Annotated[float, typer.Option(help="For each load, about.")] = 4.0,
    osl: Annotated[int, typer.Option(help="Tokens of each answer.")] = TruthConfig().tokens,
    workers: flags.Workers = 1,
    seed: flags.Seed = 0,
    as_json: flags.AsJson = False,
) -> None:
    """Measure the client of this machine against a server whose latencies are known."""
    console = Console(stderr=as_json)
    truth = TruthConfig(tokens=osl)
    with errors_as_exit_codes():
        console.print(
            f"TTFT {truth.ttft_ms:g} ms, gap {truth.gap_ms:g} ms, {truth.tokens} tokens; errors: mean / p99 in ms",
            highlight=False,
        )
        found = calibrate(
            truth,
            streams=streams or STREAMS,
            rates_rps=rate or RATES_RPS,
            duration_s=seconds,
            seed=seed,
            workers=workers,
            on_point=lambda point: show_point(point, console),
        )
    console.print(
        f"within 1 ms of mean TTFT: up to {found.max_streams} streams, {found.max_rps:g} requests/s", highlight=False
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))


@load_app.command()
def definitions() -> None:
    """Say what each figure is."""
    show_definitions(Console())


def _run_and_tell(
    spec: RunSpec, notes: tuple[str, ...], save_dir: Path, as_json: bool, html: Path | None, *, watch: bool
) -> int:
    """The exit code."""
    console = Console(stderr=as_json)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    result = run_watched(spec, progress_line(console), watch=watch)
    report = build(result)
    saved = save(result, report, save_dir)
    show(report, console)
    if as_json:
        typer.echo(json.dumps(as_json_tree(report, result)))
    if saved.error:
        tell_error(f"not all could be saved: {saved.error}")
        return CANNOT_RUN
    console.print(f"saved: {saved.report_file}, {saved.records_file}", markup=False, highlight=False, soft_wrap=True)
    if html is not None:
        write_page(saved.report_file, html)
    return code_of_run(report)
