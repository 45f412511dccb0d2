"""`ferry plan` itself: the GPUs that keep a promise, which plan to take and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import typer
from rich.console import Console

from planner.cli import options as flags
from planner.cli.errors import INFEASIBLE, errors_as_exit_codes
from planner.documents import validated
from planner.files import make_folder, read_yaml_object, write_bytes, write_plan, write_text
from planner.plan import Plan
from planner.prices import Market
from planner.questions import QuestionFile, question_of
from planner.report.answers import (
    Aim,
    answer_table,
    answer_tree,
    chosen,
    class_table,
    infeasible_lines,
    plan_lines,
    reason_lines,
)
from planner.report.pareto import check_ending, pareto_file
from planner.report.values import print_lines
from planner.search import Answer, Infeasible, PlanQuestion, plan_for
from planner.types import PlannerError

PLAN_FILE, ANSWER_FILE, PLOT_FILE = "plan.yaml", "answer.json", "plans.html"


def search_command(
    question: flags.Question = None,
    model: flags.ModelOrNone = None,
    slo: flags.SloFile = None,
    workload: flags.WorkloadFile = None,
    ttft: flags.Ttft = None,
    tpot: flags.Tpot = None,
    request_latency: flags.RequestLatency = None,
    statistic: flags.StatisticOf = None,
    isl: flags.IslOrNone = None,
    osl: flags.OslOrNone = None,
    prefix: flags.PrefixOf = None,
    request_rate: flags.RequestRate = None,
    concurrency: flags.CallersOf = None,
    system: flags.Systems = None,
    devices: flags.OwnDevices = None,
    total_gpus: flags.MostGpus = None,
    maximise_rate: flags.MaximiseRate = False,
    prices: flags.PricesFile = None,
    provider: flags.Provider = None,
    region: flags.Region = None,
    max_usd_per_hour: flags.MostUsd = None,
    spot: flags.SpotMarket = None,
    notice: flags.NoticeOf = None,
    quant: flags.Quants = None,
    kv_cache_dtype: flags.KvDtypes = None,
    backend: flags.Backend = "vllm",
    pools: flags.PoolsOf = None,
    fractions: flags.Fractions = None,
    max_model_len: flags.MaxModelLen = None,
    calibration: flags.CalibrationFile = None,
    confidence: flags.Confidence = None,
    verify_top: flags.VerifyTop = None,
    seed: flags.Seed = None,
    optimise: flags.Optimise = Aim.CHEAPEST,
    top_n: flags.TopN = 5,
    explain: flags.Explain = False,
    today: flags.Today = None,
    as_json: flags.AsJson = False,
    out: flags.Out = None,
    plot: flags.Plot = None,
    save_dir: flags.SaveDir = None,
) -> None:
    """Find the GPUs that hold the SLO: the cheapest plan, the fewest GPUs, the safest. Exit code 3: none does."""
    given = {
        "model": model, "slo": _here(slo), "workload": _here(workload), "ttft_ms": ttft, "tpot_ms": tpot,
        "e2e_ms": request_latency, "statistic": statistic, "isl": isl, "osl": osl, "prefix": prefix,
        "request_rate": request_rate, "concurrency": concurrency, "system": _words(system),
        "devices": _here(devices), "total_gpus": total_gpus, "maximise_rate": maximise_rate or None,
        "prices": _here(prices), "provider": provider, "region": region, "most_usd_per_hour": max_usd_per_hour,
        "spot": _spot(spot, notice), "quant": _words(quant), "kv_cache_dtype": _words(kv_cache_dtype), "pools": pools,
        "fractions": fractions, "max_model_len": max_model_len,
        "calibration": _here(calibration), "confidence": confidence, "verify_top": verify_top, "seed": seed,
    }  # fmt: skip
    with errors_as_exit_codes():
        asked = _asked(question, {key: value for key, value in given.items() if value is not None})
        _check(backend, plot)
        answer = plan_for(asked)
        if isinstance(answer, Answer):
            answer = answer.model_copy(update={"warnings": (*answer.warnings, *_price_warnings(answer, asked, today))})
            _save(answer, optimise, out, plot, save_dir)
    _tell(answer, optimise, most=top_n, explain=explain, as_json=as_json)
    if isinstance(answer, Infeasible):
        raise typer.Exit(INFEASIBLE)


def _asked(question: Path | None, given: dict[str, object]) -> PlanQuestion:
    """What a question file says, and flags in its place. Their paths count from here, not from the file's folder."""
    if question is None:
        return question_of(validated(QuestionFile, given, file="settings"), Path())
    asked = read_yaml_object(question) | given
    return question_of(validated(QuestionFile, asked, file=str(question)), question.parent)


def _check(backend: str, plot: Path | None) -> None:
    """What can be refused before anything is searched. Raises PlannerError."""
    if backend != "vllm":
        remedy = "leave it out, or ask `ferry plan estimate` for one deployment"
        raise PlannerError("settings", "--backend", backend, "Ferry serves with vLLM, and plans for it", remedy)
    if plot is not None:
        check_ending(plot)


def _here(path: Path | None) -> str | None:
    """Absolute, so that no other folder is put before it."""
    return str(path.absolute()) if path is not None else None


def _words(values: list[str] | None) -> list[str] | None:
    """`--system h100_sxm,l40s` is as good as saying --system twice."""
    return [word for value in values for word in value.split(",") if word] if values else None


def _spot(market: str | None, notice: str | None) -> dict[str, object] | None:
    if market is None:
        return None
    return {"market": market, **({"notice": notice} if notice is not None else {})}


def _price_warnings(answer: Answer, asked: PlanQuestion, today: date | None) -> Iterator[str]:
    """What is doubtful about the prices of the plans that the answer names."""
    for device in asked.devices:
        for plan in (answer.cheapest.plan, answer.fewest_gpus.plan, answer.safest.plan):
            for market in _markets(plan, device.name):
                price = asked.prices.price(device, market, provider=asked.provider, region=asked.region)
                if warning := price.warning(today or date.today()):
                    yield warning


def _markets(plan: Plan, device: str) -> set[Market]:
    found: set[Market] = set()
    for pool in plan.pools.values():
        if pool.device.partition(":")[0] == device.partition(":")[0]:  # fractions are priced by the whole
            found |= {"on_demand"} if pool.on_demand else set()
            found |= {"spot"} if pool.spot else set()
    return found


def _save(answer: Answer, aim: Aim, out: Path | None, plot: Path | None, folder: Path | None) -> None:
    plan = chosen(answer, aim).plan
    title = f"{plan.model}: plans for {plan.traffic.busy_rate_rps:.3g} requests/s"
    if folder is not None:
        make_folder(folder)
        write_text(folder / ANSWER_FILE, json.dumps(answer_tree(answer, aim), indent=2) + "\n")
        write_bytes(folder / PLOT_FILE, pareto_file(answer, folder / PLOT_FILE, title=title))
    for path in (out, folder / PLAN_FILE if folder is not None else None):
        if path is not None:
            write_plan(plan, path)
    if plot is not None:
        write_bytes(plot, pareto_file(answer, plot, title=title))


def _tell(answer: Answer | Infeasible, aim: Aim, *, most: int, explain: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer_tree(answer, aim), indent=2))
        return
    console = Console()
    if isinstance(answer, Infeasible):
        print_lines(console, infeasible_lines(answer, explain=explain))
        return
    plan = chosen(answer, aim).plan
    console.print(answer_table(answer, most=most))
    print_lines(console, (f"the {aim} plan:",))
    console.print(class_table(plan))
    print_lines(console, plan_lines(plan))
    print_lines(console, reason_lines(answer, plan, explain=explain))
