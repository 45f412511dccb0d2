"""`ferry load search`: the highest request rate that meets the SLO. `ferry load sweep`: latencies over given rates.

Exit codes of `search`: 0 the capacity is known as narrowly as asked for, or above --max-rate; 1 it is not, or below
--min-rate; 3 the client was the limit. Of `sweep`: 0, or 3 if a run was INVALID. Of both: 2 if it could not run to its
end (the server refuses or is gone, or a load cannot be made) or not all could be saved, 130 if it was interrupted. What
was measured before that is told and saved.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest import cli_options as flags
from loadtest.cli_groups import GoalFlags, LimitFlags, RequestFlags, TargetFlags, TimesFlags, grouped, plan_of
from loadtest.cli_report import HtmlFile, run_watched
from loadtest.cli_shared import CANNOT_RUN, EXIT_CODES, INTERRUPTED, code_of_error, errors_as_exit_codes, tell_error
from loadtest.console import progress_line
from loadtest.document import finite
from loadtest.interrupts import Interrupts
from loadtest.load import load_for
from loadtest.load_plan import LoadPlan
from loadtest.page.rate_page import RatePage
from loadtest.rates.decide import Ending, Goal
from loadtest.rates.search import Made, SpecAt, search, searched_slo
from loadtest.rates.searched import Searched, as_tree, statement
from loadtest.rates.sweep import Row, knee, parse_rates, row_of, show_rows, sweep_tree
from loadtest.rates.whole import not_served
from loadtest.remedies import for_records
from loadtest.report import Verdict, build
from loadtest.results import check_folder, save, write_whole
from loadtest.spec import RunSpec
from loadtest.types import LoadTestError, Slo, Target

SEARCH, RATES = "Search", "Rates"
SEARCH_CODES = MappingProxyType(
    {
        Ending.FOUND: 0,
        Ending.ALL_MEET: 0,
        Ending.CLIENT_LIMIT: 3,
        Ending.NOT_SERVED: CANNOT_RUN,
        Ending.NO_LOAD: CANNOT_RUN,
        Ending.INTERRUPTED: INTERRUPTED,
    }
)
NOT_KNOWN = 1

StartRate = Annotated[float, typer.Option(help="Requests/s of the first run.", rich_help_panel=SEARCH)]
MinRate = Annotated[float, typer.Option(help="Give up below this.", rich_help_panel=SEARCH)]
MaxRate = Annotated[float, typer.Option(help="Be content with this.", rich_help_panel=SEARCH)]
Precision = Annotated[float, typer.Option(help="Half of the interval, of the capacity.", rich_help_panel=SEARCH)]
Confidence = Annotated[float, typer.Option(help="Of the interval.", rich_help_panel=SEARCH)]
MaxRuns = Annotated[int, typer.Option(help="At most so many.", rich_help_panel=SEARCH)]
MaxTime = Annotated[float, typer.Option(help="Begin no run that would end later.", rich_help_panel=SEARCH)]
Requests = Annotated[
    int | None,
    typer.Option(help="Of a brief run.", show_default="as the sequential test needs", rich_help_panel=SEARCH),
]
Rates = Annotated[
    str, typer.Option("--rates", help="`1,2,4` or `FROM:TO:COUNT`, in requests/s.", rich_help_panel=RATES)
]
Seconds = Annotated[float, typer.Option(help="Of each load.", rich_help_panel=RATES)]


def register(app: typer.Typer) -> None:
    app.command("search")(search_)
    app.command("sweep")(sweep)


@grouped
def search_(
    where: TargetFlags,
    requests: RequestFlags,
    goal: GoalFlags,
    bounds: LimitFlags,
    start_rate: StartRate = 1.0,
    min_rate: MinRate = 0.01,
    max_rate: MaxRate = 10_000.0,
    precision: Precision = 0.05,
    confidence: Confidence = 0.95,
    max_runs: MaxRuns = 100,
    max_time_s: MaxTime = 3600.0,
    requests_per_run: Requests = None,
    burstiness: flags.Burstiness = 1.0,
    workload: flags.Workload = None,
    seed: flags.Seed = 0,
    save_dir: flags.SaveDir = Path("results"),
    html: HtmlFile = None,
    as_json: flags.AsJson = False,
) -> None:
    """Find the highest open-loop rate that meets the SLO, and say how sure that is. Ctrl-C keeps what is known."""
    console = Console(stderr=as_json)
    with errors_as_exit_codes():
        check_folder(save_dir)
        slo, wanted = searched_slo(_one_slo(goal))
        aim = _checked(Goal(wanted, start_rate, min_rate, max_rate, precision, confidence, max_runs))
        times = TimesFlags(burstiness=burstiness, workload=workload, seed=seed)
        target = where.target()
        spec_at = _spec_at(plan_of(where, times, requests, goal), target, bounds)
        rows: list[Row] = []
        unsaved: list[str] = []
        with Interrupts() as interrupts:
            found = search(
                spec_at,
                slo,
                aim,
                lambda spec: run_watched(spec, progress_line(console), watch=False, of_series=interrupts),
                seed=seed,
                requests=requests_per_run,
                max_time_s=max_time_s,
                on_run=_telling(console, save_dir, rows, unsaved),
                interrupts=interrupts,
            )
            told = statement(found)
            console.print(told, style="bold", markup=False, highlight=False, soft_wrap=True)
            tree = as_tree(found, [row.report for row in rows])
            _tell(f"search-{uuid.uuid4().hex[:12]}.json", tree, save_dir, console, as_json)
            _write_page(_search_page(found, told, rows, slo), html, console)
        if unsaved:
            raise LoadTestError(f"not all could be saved: {unsaved[0]}")
        raise typer.Exit(SEARCH_CODES.get(found.ending, NOT_KNOWN))


@grouped
def sweep(
    rates: Rates,
    where: TargetFlags,
    requests: RequestFlags,
    goal: GoalFlags,
    bounds: LimitFlags,
    seconds: Seconds = 60.0,
    burstiness: flags.Burstiness = 1.0,
    workload: flags.Workload = None,
    warmup_s: flags.WarmUp = 5.0,
    seed: flags.Seed = 0,
    save_dir: flags.SaveDir = Path("results"),
    html: HtmlFile = None,
    as_json: flags.AsJson = False,
) -> None:
    """Measure at several request rates, lowest first; the same seed gives each the same arrivals but for their pace."""
    console = Console(stderr=as_json)
    with errors_as_exit_codes():
        check_folder(save_dir)
        if not seconds > warmup_s:
            raise LoadTestError(f"--seconds is {seconds:g}: it must be above --warmup-s, {warmup_s:g}")
        times = TimesFlags(
            burstiness=burstiness, workload=workload, seed=seed, benchmark_duration=seconds, warmup_s=warmup_s
        )
        target, (slo, class_slos), (count, ray_address) = where.target(), goal.slos(), bounds.crew
        drawn = slo_of_all(goal, workload)
        plan = plan_of(where, times, requests, goal)
        spec = RunSpec(
            target, [], bounds.limits(times), slo, count, warmup_s, class_slos=class_slos, ray_address=ray_address
        )

        def spec_at(rate_rps: float) -> RunSpec:
            return replace(spec, jobs=load_for(replace(plan, request_rate_rps=rate_rps), target).jobs)

        rows: list[Row] = []
        with Interrupts() as interrupts:
            code, why = _each_rate(parse_rates(rates), spec_at, save_dir, rows, console, interrupts)
            show_rows(rows, console)
            _tell(f"sweep-{uuid.uuid4().hex[:12]}.json", sweep_tree(rows, knee(rows), why), save_dir, console, as_json)
            _write_page(_sweep_page(rows, drawn), html, console)
        invalid = any(row.verdict is Verdict.INVALID for row in rows)
        raise typer.Exit(code or (EXIT_CODES[Verdict.INVALID] if invalid else 0))


def _each_rate(
    rates_rps: Sequence[float],
    spec_at: Callable[[float], RunSpec],
    folder: Path,
    rows: list[Row],
    console: Console,
    interrupts: Interrupts,
) -> tuple[int, str]:
    """Adds a row for each. Gives the exit code and the reason if the sweep had to end before its last rate; else 0 and
    "". Raises LoadTestError or KeyboardInterrupt if there is no row to keep.
    """
    for rate_rps in rates_rps:
        try:
            with interrupts.at_once():
                spec = spec_at(rate_rps)
            code, why = _one_rate(rate_rps, spec, folder, rows, console, interrupts)
        except LoadTestError as error:
            if not rows:
                raise
            code, why = code_of_error(error), str(error)
        except KeyboardInterrupt:
            if not rows:
                raise
            code, why = INTERRUPTED, "interrupted"
        if why:
            tell_error(f"at {rate_rps:g} requests/s: {why}")
            return code, why
    return 0, ""


def _one_rate(
    rate_rps: float, spec: RunSpec, folder: Path, rows: list[Row], console: Console, interrupts: Interrupts
) -> tuple[int, str]:
    """Adds a row. Gives the exit code and the reason if the sweep has to end with this run; else 0 and ""."""
    result = run_watched(spec, progress_line(console), watch=False, of_series=interrupts)
    report = build(result)
    saved = save(result, report, folder)
    rows.append(row_of(rate_rps, report, saved.report_file.name))
    for line in report.warnings:
        console.print(f"at {rate_rps:g} requests/s: {line}", style="yellow", markup=False, highlight=False)
    if saved.error:
        return CANNOT_RUN, f"not all could be saved: {saved.error}"
    if result.interrupted:
        return INTERRUPTED, "interrupted; its figures are of what was seen until then"
    why = not_served(result.records)
    return (CANNOT_RUN, why) if why else (0, "")


def _spec_at(plan: LoadPlan, target: Target, bounds: LimitFlags) -> SpecAt:
    limits, (workers, ray_address) = bounds.limits(TimesFlags()), bounds.crew

    def spec_at(rate_rps: float, count: int, seed: int) -> RunSpec:
        asked = replace(plan, request_rate_rps=rate_rps, requests=count, seed=seed)
        return RunSpec(target, load_for(asked, target).jobs, limits, workers=workers, ray_address=ray_address)

    return spec_at


def slo_of_all(goal: GoalFlags, workload: Path | None) -> Slo | None:
    """That of every request of a sweep; None where the classes of a workload have their own. Raises LoadTestError."""
    several = len(goal.slos()[1]) > 1
    return None if workload is not None and several else _one_slo(goal)


def _one_slo(goal: GoalFlags) -> Slo:
    slo, classes = goal.slos()
    if not classes:
        return slo
    return classes[goal.class_of_load(None)]


def _checked(goal: Goal) -> Goal:
    """Raises LoadTestError for bounds that hold nothing."""
    if not 0 < goal.min_rps <= goal.start_rps <= goal.max_rps < math.inf:
        raise LoadTestError("--min-rate, --start-rate and --max-rate must be above 0 and rise in this order")
    if not 0 < goal.precision < 1 or not 0 < goal.confidence < 1:
        raise LoadTestError("--precision and --confidence are shares between 0 and 1")
    if goal.max_runs < 1:
        raise LoadTestError(f"--max-runs is {goal.max_runs}: allow 1 or more")
    return goal


def _search_page(found: Searched, told: str, rows: list[Row], slo: Slo) -> RatePage:
    return RatePage(
        title="The highest rate",
        statement=told,
        rows=rows,
        slo=slo,
        wanted=found.goal.wanted,
        known=found.known,
        joined=False,
    )


def _sweep_page(rows: list[Row], slo: Slo | None) -> RatePage:
    """`slo`: of all requests, where it is one."""
    bend = knee(rows)
    told = "no rate is past the knee" if bend is None else f"beyond {bend:g} requests/s latency takes off"
    wanted = slo.attainment if slo is not None else None
    return RatePage(title="Latency over the rate", statement=told, rows=rows, slo=slo or Slo(), wanted=wanted)


def _write_page(page: RatePage, file: Path | None, console: Console) -> None:
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page.html(), encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error
    console.print(f"page: {file}", markup=False, highlight=False, soft_wrap=True)


def _telling(console: Console, folder: Path, rows: list[Row], unsaved: list[str]) -> Callable[[Made], None]:
    """Saves each run and says a line about it; `unsaved` gets what could not be saved."""

    def on_run(made: Made) -> None:
        saved = save(made.result, made.report, folder)
        rows.append(row_of(made.probe.run.rate_rps, made.report, saved.report_file.name))
        unsaved.extend([saved.error] if saved.error else [])
        run_, kind = made.probe.run, "brief" if made.probe.brief else "full"
        due = sum(batch.due for batch in run_.batches)
        state = "" if made.probe.valid else f"  INVALID: {'; '.join(made.report.faults)}"
        state += f"  {saved.error}" if saved.error else ""
        refusals = for_records(made.result.records, made.result.spec.target.endpoint, made.result.served)
        state += "".join(f"  {line}" for line in refusals)
        share = f"{run_.share:7.2%}" if due else f"{'-':>7}"
        console.print(
            f"{run_.rate_rps:9.4g} requests/s  {kind:5}  {due:5} requests  {share} within the SLO{state}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return on_run


def _tell(name: str, tree: dict[str, Any], folder: Path, console: Console, as_json: bool) -> None:
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(finite(tree), indent=1) + "\n").encode())
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error
    console.print(f"saved: {file}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(finite(tree)))
