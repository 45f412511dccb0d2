"""`ferry load validate`: a plan's prediction beside what its deployment does, at 90 %, 100 % and 110 % of its rate.

Exit codes as those of `ferry load run`, of the planned rate; 3 if any of the runs is INVALID. One that could not come
to its end (2), or was interrupted (130), writes the rates that it has and why they are not all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest import cli_options as flags
from loadtest.cli_groups import TargetFlags, grouped
from loadtest.cli_report import RentFlag, rent_of, run_watched
from loadtest.cli_shared import EXIT_CODES, errors_as_exit_codes
from loadtest.console import progress_line
from loadtest.endpoint import Asker, first_model
from loadtest.goals import goal_of
from loadtest.interrupts import Interrupts
from loadtest.load import load_for
from loadtest.options import check_above_zero, parse_workers
from loadtest.report import build
from loadtest.results import check_folder, save
from loadtest.spec import RunSpec
from loadtest.types import Interrupted, Limits, LoadTestError, Target
from loadtest.validate.load import load_of
from loadtest.validate.prediction import class_of, of_model, of_plan, rent_of_plan
from loadtest.validate.results import Point, point_of, results, verdict_of
from planner import Plan, read_plan

SHARES = (0.9, 1.0, 1.1)
RESULTS_FILE = "results.json"
UNKNOWN = "unknown"
NEEDS_ALL = "a validation needs all three loads"
ANSWER_WITHIN_S = 10.0

PlanFile = Annotated[Path, typer.Option("--plan", help="The plan.yaml that was deployed.")]
SloClassName = Annotated[
    str, typer.Option("--slo-class", help="Of the plan, where it has several.", show_default="the only one")
]
Seconds = Annotated[float, typer.Option(help="Of each of the three loads.")]


def register(app: typer.Typer) -> None:
    app.command("validate")(validate)


@grouped
def validate(
    plan: PlanFile,
    where: TargetFlags,
    slo_class: SloClassName = "",
    seconds: Seconds = 60.0,
    warmup_s: flags.WarmUp = 5.0,
    seed: flags.Seed = 0,
    tokenizer: flags.TokenizerName = "",
    timeout_s: flags.Timeout = 600.0,
    workers: flags.WorkersAt = "1",
    usd_per_hour: RentFlag = None,
    save_dir: flags.SaveDir = Path("results"),
    as_json: flags.AsJson = False,
) -> None:
    """Measure what a plan predicts, and write both into results.json."""
    with errors_as_exit_codes():
        check_folder(save_dir)
        check_above_zero({"--seconds": seconds, "--timeout-s": timeout_s})
        planned = read_plan(plan)
        name = class_of(planned, slo_class)
        if not seconds > warmup_s:
            raise LoadTestError(f"--seconds is {seconds:g}: it must be above --warmup-s, {warmup_s:g}")
        target, (count, ray_address) = where.target(), parse_workers(workers)
        spec = RunSpec(
            target,
            [],
            Limits(stop_after_s=seconds, timeout_s=timeout_s),
            goal_of(planned.slo.of(name)),
            count,
            warmup_s,
            ray_address=ray_address,
            rent=rent_of(usd_per_hour, None) or rent_of_plan(planned, plan.name),
        )
        console = Console(stderr=as_json)
        model = where.model or first_model(target)
        versions = {"ferry": _our_version(), "server": _server_version(target)}

        def measure(share: float) -> Point:
            asked = load_of(
                planned, share, endpoint=where.endpoint, model=model, seconds=seconds, seed=seed, tokenizer=tokenizer
            )
            with interrupts.at_once():
                load = load_for(asked, target)
            console.print(f"{share:.0%} of the planned rate: {asked.request_rate_rps:g} requests/s", highlight=False)
            for note in load.notes if share == SHARES[0] else ():
                console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
            return _measure(share, planned, name, replace(spec, jobs=load.jobs), save_dir, console, interrupts)

        with Interrupts() as interrupts:
            points, stopped = _measured(measure)
            why, today = str(stopped or ""), datetime.now(UTC).date().isoformat()
            tree = results(planned, plan.name, name, points, date=today, versions=versions, stopped=why)
            _write(save_dir / RESULTS_FILE, json.dumps(tree, indent=1))
            _show(points, console)
            console.print(f"saved: {save_dir / RESULTS_FILE}", markup=False, highlight=False, soft_wrap=True)
            if as_json:
                typer.echo(json.dumps(tree))
        if stopped is not None:
            raise stopped
        raise typer.Exit(EXIT_CODES[verdict_of(points)])


def _measured(measure: Callable[[float], Point]) -> tuple[list[Point], LoadTestError | None]:
    """The points, and why they are not all. Raises LoadTestError or KeyboardInterrupt if there is none to keep."""
    points: list[Point] = []
    for share in SHARES:
        try:
            points.append(measure(share))
        except (LoadTestError, KeyboardInterrupt) as error:
            if not points:
                raise
            return points, error if isinstance(error, LoadTestError) else Interrupted(f"interrupted: {NEEDS_ALL}")
    return points, None


def _measure(
    share: float,
    plan: Plan,
    slo_class: str,
    spec: RunSpec,
    save_dir: Path,
    console: Console,
    interrupts: Interrupts,
) -> Point:
    """Raises LoadTestError if the run could not start, was interrupted or could not be saved."""
    result = run_watched(spec, progress_line(console), watch=True, of_series=interrupts)
    report = build(result)
    saved = save(result, report, save_dir)
    if saved.error:
        raise LoadTestError(f"not all could be saved: {saved.error}")
    if result.interrupted:
        raise Interrupted(f"interrupted: {NEEDS_ALL}; {saved.report_file} has what was seen")
    traffic = plan.traffic
    predicted = [of_model(plan, share * traffic.rate_rps, traffic.isl.mean, traffic.osl.mean)]
    if share == 1.0:
        predicted.insert(0, of_plan(plan, slo_class))
    return point_of(share, report, saved.report_file.name, predicted)


def _show(points: Sequence[Point], console: Console) -> None:
    table = Table(title="predicted and measured, ms", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("rate")
    table.add_column("who says so")
    for head in ("TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "within the SLO"):
        table.add_column(head, justify="right", no_wrap=True)
    for point in points:
        found = point.measured
        met = point.attainment["share"] if point.attainment is not None else None
        table.add_row(f"{point.share:.0%}", f"measured, {point.verdict}", *_cells(found.ttft_ms, found.tpot_ms, met))
        for told in point.predicted:
            table.add_row("", told.source, *_cells(told.ttft_ms, told.tpot_ms, told.attainment))
    console.print(table)
    silent = [one for point in points for one in point.predicted if one.why_not]
    for line in dict.fromkeys(f"{one.source} predicts nothing: {one.why_not}" for one in silent):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for point in points:
        for broken, count in point.failed.items():
            console.print(f"at {point.share:.0%}: {count} requests ended as {broken}", style="yellow", highlight=False)


def _cells(ttft_ms: object, tpot_ms: object, met: float | None) -> list[str]:
    cells = []
    for some in (ttft_ms, tpot_ms):
        values = some if isinstance(some, dict) else {}
        cells += [f"{values[share]:.1f}" if share in values else "-" for share in ("p50", "p90", "p99")]
    return [*cells, "-" if met is None else f"{met:.1%}"]


def _our_version() -> str:
    try:
        return version("ferry-serve")
    except PackageNotFoundError:
        return UNKNOWN


def _server_version(target: Target) -> str:
    """As vLLM's `/version` tells it; a server need not have one."""
    asker = Asker(target, ANSWER_WITHIN_S)
    try:
        status, body = asker.fetch("GET", "/version")
        told = json.loads(body).get("version") if status == 200 else None
    except (LoadTestError, ValueError, AttributeError, RecursionError):
        return UNKNOWN
    finally:
        asker.close()
    return str(told) if told else UNKNOWN


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error
