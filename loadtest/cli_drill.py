"""`ferry load drill`: a load, and what becomes of its streams when something is done to the deployment.

Exit codes as those of `ferry load run`; also 1 if a stream that was open at an action did not complete, and 2 if an
action could not be done: then nothing was drilled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest import cli_options as flags
from loadtest.cli_groups import GoalFlags, LimitFlags, RequestFlags, TargetFlags, TimesFlags, grouped, plan_of
from loadtest.cli_report import HtmlFile, PlanPrice, RentFlag, asking_for_moves, rent_of, run_watched, write_page
from loadtest.cli_shared import CANNOT_RUN, INTERRUPTED, code_of_run, errors_as_exit_codes, tell_error
from loadtest.console import progress_line, show
from loadtest.console_drill import show_drill
from loadtest.drill.conductor import Conductor
from loadtest.drill.hands import Hands
from loadtest.drill.relay import Relay
from loadtest.drill.report import DrillReport, drill_report
from loadtest.drill.slowness import Slowness
from loadtest.drill.texts import TextCheck, check_texts
from loadtest.drill.timeline import BY_ADMIN_API, Action, Kind, in_order, parse_action, timeline_from
from loadtest.jobs import greedy
from loadtest.load import load_for
from loadtest.report import Report, build
from loadtest.report import as_json as as_json_tree
from loadtest.results import Saved, check_folder, save
from loadtest.runner import run as run_load
from loadtest.spec import RunResult, RunSpec
from loadtest.types import Interrupted, LoadTestError, Record
from planner import read_yaml_object

DRILL = "Drill"

Do = Annotated[
    list[str] | None,
    typer.Option(
        "--do",
        help="`SECONDS KIND SUBJECT`; repeat it. Kinds: drain, undrain, kill, kill-host, take, stop, continue a "
        "REPLICA (or busiest:POOL; the last five also pid:N on this machine); notice `REPLICA 30s`: drain it with that "
        "deadline and take it then; slow the network: `80ms`, `10mbit`, both or `off`; post to a URL; run a command.",
        rich_help_panel=DRILL,
    ),
]
Timeline = Annotated[Path | None, typer.Option(help="The same in YAML: a list `actions`.", rich_help_panel=DRILL)]
AdminUrl = Annotated[str, typer.Option(help="Where /admin/v1 is.", show_default="--base-url", rich_help_panel=DRILL)]
AdminToken = Annotated[str, typer.Option(envvar="FERRY_ADMIN_TOKEN", help="Of the admin API.", rich_help_panel=DRILL)]
CheckText = Annotated[
    bool,
    typer.Option(
        "--check-text",
        help="Compare each answer with an undisturbed run of the same greedy requests, before the drill.",
        rich_help_panel=DRILL,
    ),
]
NoControl = Annotated[
    bool,
    typer.Option(
        "--no-control",
        help="Without a second undisturbed run, which says how much of a difference is usual.",
        rich_help_panel=DRILL,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("drill")(drill)


@grouped
def drill(
    where: TargetFlags,
    times: TimesFlags,
    requests: RequestFlags,
    goal: GoalFlags,
    bounds: LimitFlags,
    do: Do = None,
    timeline: Timeline = None,
    admin_url: AdminUrl = "",
    admin_token: AdminToken = "",
    check_text: CheckText = False,
    no_control: NoControl = False,
    save_dir: flags.SaveDir = Path("results"),
    as_json: flags.AsJson = False,
    html: HtmlFile = None,
    usd_per_hour: RentFlag = None,
    price_plan: PlanPrice = None,
) -> None:
    """Send a load, do things to the deployment meanwhile, and tell what became of the streams."""
    with errors_as_exit_codes():
        check_folder(save_dir)
        actions = _actions(do, timeline)
        target = asking_for_moves(where.target())
        token = (("Authorization", f"Bearer {admin_token}"),) if admin_token else ()
        admin = replace(target, base_url=admin_url or where.base_url, headers=token)
        _check_reach(Hands(admin), actions)
        slo, class_slos = goal.slos()
        load = load_for(plan_of(where, times, requests, goal), target)
        spec = RunSpec(
            target,
            greedy(load.jobs, times.seed) if check_text else load.jobs,
            bounds.limits(times),
            slo,
            bounds.crew[0],
            times.warmup_s,
            load.lasts_s,
            ray_address=bounds.crew[1],
            keep_text=check_text,
            class_slos=class_slos,
            rent=rent_of(usd_per_hour, price_plan),
        )
        with _network(spec, actions) as (spec, slow):
            code = _drill(spec, actions, Hands(admin, slow), save_dir, html, as_json, control=not no_control)
        raise typer.Exit(code)


@contextmanager
def _network(spec: RunSpec, actions: list[Action]) -> Iterator[tuple[RunSpec, Callable[[Slowness], bool] | None]]:
    """A relay for the load where an action makes its network slow; it adds a little to each answer of its own."""
    if not any(action.kind is Kind.SLOW for action in actions):
        yield spec, None
        return
    if spec.ray_address is not None:
        raise LoadTestError("a slow network is made on this machine: leave out --workers ray:…, or the slow actions")
    with Relay(spec.target.base_url) as relay:
        yield replace(spec, target=replace(spec.target, relay_port=relay.port)), relay.slow


def _actions(do: list[str] | None, timeline: Path | None) -> list[Action]:
    actions = [parse_action(text) for text in do or ()]
    if timeline is not None:
        actions += timeline_from(read_yaml_object(timeline), str(timeline))
    if not actions:
        raise LoadTestError("a drill needs an action: --do '20 drain decode-1', or --timeline FILE")
    return in_order(actions)


def _check_reach(hands: Hands, actions: list[Action]) -> None:
    """Better before the load than in its middle. Raises LoadTestError."""
    if any(action.names_replica or action.kind in BY_ADMIN_API for action in actions):
        hands.replicas()


def _drill(
    spec: RunSpec,
    actions: list[Action],
    hands: Hands,
    save_dir: Path,
    html: Path | None,
    as_json: bool,
    *,
    control: bool,
) -> int:
    """The exit code."""
    console = Console(stderr=as_json)
    undisturbed = _undisturbed(spec, console, control=control) if spec.keep_text else []
    conductor = Conductor(actions, hands)
    with conductor:
        result = run_watched(spec, progress_line(console), conductor.begin, watch=True)
    report = build(result)
    told, saved = save_drill(result, report, save_dir, lambda: _told(result, conductor, undisturbed))
    show(report, console)
    show_drill(told, console)
    if as_json:
        typer.echo(json.dumps({**as_json_tree(report, result), "drill": asdict(told)}, default=str))
    if saved.error:
        tell_error(f"not all could be saved: {saved.error}")
        return CANNOT_RUN
    console.print(f"saved: {saved.report_file}, {saved.records_file}", markup=False, highlight=False, soft_wrap=True)
    if html is not None:
        write_page(saved.report_file, html, "Drill")
    return _exit_code(told, code_of_run(report))


def save_drill(
    result: RunResult, report: Report, save_dir: Path, tell: Callable[[], DrillReport]
) -> tuple[DrillReport, Saved]:
    """Save the run with what `tell` says of the drill; where that raises, without, since loads take long to repeat."""
    more: dict[str, Any] = {}
    try:
        told = tell()
        more["drill"] = asdict(told)
    finally:
        saved = save(result, report, save_dir, more)
    return told, saved


def _told(result: RunResult, conductor: Conductor, undisturbed: list[tuple[Record, ...]]) -> DrillReport:
    spec = result.spec
    return drill_report(
        result.records,
        spec.slo_of,
        conductor.done,
        [str(action) for action in conductor.undone],
        run_id=result.run_id,
        start_ns=result.start_ns,
        warmup_s=spec.warmup_s,
        texts=_texts(result, undisturbed),
        usd_per_hour=spec.rent.usd_per_hour if spec.rent is not None else None,
    )


def _undisturbed(spec: RunSpec, console: Console, *, control: bool) -> list[tuple[Record, ...]]:
    """The reference, and the control if wanted. A run before them fills the prefix caches, which change the roundings.

    Raises Interrupted if a reference run was.
    """
    runs = []
    for name in ("to fill the caches", "as the reference", *(["as the control"] if control else [])):
        console.print(f"an undisturbed run {name}", highlight=False)
        result = run_load(spec, progress_line(console))
        if result.interrupted:
            raise Interrupted("interrupted before the drill: nothing was drilled, and no run is saved")
        runs.append(result.records)
    return runs[1:]


def _texts(result: RunResult, undisturbed: list[tuple[Record, ...]]) -> TextCheck | None:
    return check_texts(result.records, *undisturbed) if undisturbed else None


def _exit_code(told: DrillReport, of_verdict: int) -> int:
    if of_verdict == INTERRUPTED:
        return INTERRUPTED
    if told.undone or not all(one.action.ok for one in told.actions):
        return CANNOT_RUN
    lost = any(one.streams.lost for one in told.actions)
    return of_verdict or int(lost)
