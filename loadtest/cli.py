"""`ferry load`: measure an endpoint, and what this machine can measure.

Exit codes: 0 the SLO is met (or none was given), 1 it is missed, 2 the test could not run or its results could not be
saved, 3 the run is INVALID: the client was the limit.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest import cli_drill, cli_exchange, cli_report, cli_validate
from loadtest import cli_options as flags
from loadtest.calibrate import RATES_RPS, STREAMS, calibrate
from loadtest.cli_report import HtmlFile, NoWatch, PlanPrice, RentFlag, rent_of, run_watched, write_page
from loadtest.cli_shared import CANNOT_RUN, EXIT_CODES, errors_as_exit_codes
from loadtest.console import progress_line, show, show_definitions, show_point
from loadtest.endpoint import first_model
from loadtest.load import LoadPlan, make_load
from loadtest.options import parse_header, parse_slo
from loadtest.report import as_json as as_json_tree
from loadtest.report import build
from loadtest.results import save
from loadtest.spec import RunSpec
from loadtest.truth import TruthConfig
from loadtest.types import Limits, Target

load_app = typer.Typer(no_args_is_help=True, help="Measure an endpoint: `run` it, `calibrate` this machine.")

cli_report.register(load_app)
cli_exchange.register(load_app)
cli_drill.register(load_app)
cli_validate.register(load_app)


@load_app.command()
def run(
    base_url: flags.BaseUrl = "http://127.0.0.1:8000",
    model: flags.Model = "",
    endpoint: flags.Endpoint = "/v1/chat/completions",
    api_key: flags.ApiKey = "",
    header: flags.Header = None,
    ca_file: flags.CaFile = None,
    insecure: flags.Insecure = False,
    request_rate: flags.RequestRate = math.inf,
    burstiness: flags.Burstiness = 1.0,
    arrivals: flags.Arrivals = None,
    cv: flags.Cv = 1.0,
    ramp_up_start_rps: flags.RampFrom = None,
    on_off: flags.OnOff = "",
    rate_file: flags.RateFile = None,
    trace: flags.Trace = None,
    trace_format: flags.TraceFormat = "",
    trace_keep: flags.TraceKeep = 1.0,
    max_concurrency: flags.Concurrency = None,
    num_prompts: flags.NumPrompts = None,
    benchmark_duration: flags.Duration = None,
    warmup_s: flags.WarmUp = 0.0,
    seed: flags.Seed = 0,
    isl: flags.Isl = 512,
    osl: flags.Osl = 128,
    ignore_eos: flags.IgnoreEos = False,
    no_stream: flags.NoStream = False,
    goodput: flags.Goodput = None,
    slo_attainment_fraction: flags.Attainment = 0.95,
    timeout_s: flags.Timeout = 600.0,
    idle_timeout_s: flags.IdleTimeout = None,
    drain_s: flags.Drain = None,
    workers: flags.Workers = 1,
    save_dir: flags.SaveDir = Path("results"),
    as_json: flags.AsJson = False,
    keep_text: flags.KeepText = False,
    html: HtmlFile = None,
    usd_per_hour: RentFlag = None,
    price_plan: PlanPrice = None,
    no_watch: NoWatch = False,
) -> None:
    """Send a load, and judge it against the SLO. Ctrl-C ends it early and keeps what was seen."""
    with errors_as_exit_codes():
        keys = (("Authorization", f"Bearer {api_key}"),) if api_key else ()
        headers = (*keys, *(parse_header(line) for line in header or ()))
        target = Target(base_url, endpoint, headers, str(ca_file) if ca_file else None, not insecure)
        plan = LoadPlan(
            endpoint=endpoint, model=model or first_model(target), input_words=isl, output_tokens=osl,
            ignore_eos=ignore_eos, stream=not no_stream, seed=seed, request_rate_rps=request_rate,
            burstiness=burstiness, family=arrivals, cv=cv, ramp_from_rps=ramp_up_start_rps, bursts=on_off,
            rate_file=rate_file, trace=trace, trace_format=trace_format, trace_keep=trace_keep,
            concurrency=max_concurrency, requests=num_prompts, duration_s=benchmark_duration,
        )  # fmt: skip
        limits = Limits(max_concurrency, benchmark_duration, timeout_s, idle_timeout_s, drain_s=drain_s)
        slo = parse_slo(goodput or (), slo_attainment_fraction)
        load = make_load(plan)
        spec = RunSpec(
            target,
            load.jobs,
            limits,
            slo,
            workers,
            warmup_s,
            keep_text=keep_text,
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
        Console(stderr=True).print(f"not all could be saved: {saved.error}", style="red", markup=False)
        return CANNOT_RUN
    console.print(f"saved: {saved.report_file}, {saved.records_file}", markup=False, highlight=False, soft_wrap=True)
    if html is not None:
        write_page(saved.report_file, html)
    return EXIT_CODES[report.verdict]
