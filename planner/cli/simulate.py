"""`ferry simulate`: what a plan, or one deployment, does under its traffic, request by request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from planner.arrivals import ClosedLoop
from planner.cli import options as flags
from planner.cli.errors import INFEASIBLE, errors_as_exit_codes
from planner.files import read_plan, read_workload
from planner.length_views import cached_tokens
from planner.plan import Plan, PoolPlan
from planner.report.answers import pools_text
from planner.report.simulation import classes_of, outcome_lines, outcome_table, outcome_tree
from planner.report.values import print_lines
from planner.simulate import Fleet, MixedFleet, Outcome, Pool, Requests, SplitFleet, run_closed, run_open
from planner.types import PlannerError
from planner.workload import Sample, Workload, workload_from


@dataclass(frozen=True)
class Traffic:
    """What is sent: a workload, or a closed loop of `callers` over its lengths."""

    workload: Workload
    callers: int | None
    prefix_share: float = 0.0  # of each prompt, beside what the workload itself shares


def simulate_command(
    plan: flags.PlanFile,
    workload: flags.WorkloadFile = None,
    request_rate: flags.RequestRate = None,
    concurrency: flags.Callers = None,
    requests: flags.Requests = 10_000,
    seed: flags.SeedOr0 = 0,
    as_json: flags.AsJson = False,
) -> None:
    """Send traffic through a plan, with vLLM's scheduling rules. Exit code 3: a class of its SLO is missed."""
    with errors_as_exit_codes("ferry simulate"):
        planned = read_plan(plan)
        traffic = _traffic(planned, workload, request_rate, concurrency)
        sample = traffic.workload.sample(seed, requests)
        outcome = _run(planned, traffic, sample, seed)
        classes = classes_of(outcome, planned.slo, sample.streams, sample.stream)
    if as_json:
        typer.echo(json.dumps(outcome_tree(outcome, classes), indent=2))
    else:
        console = Console()
        print_lines(console, (f"{planned.model} on {pools_text(planned)}",))
        console.print(outcome_table(outcome))
        print_lines(console, outcome_lines(outcome, classes))
    if any(not one.met for one in classes):
        raise typer.Exit(INFEASIBLE)


def _traffic(planned: Plan, path: Path | None, rate_rps: float | None, callers: int | None) -> Traffic:
    """The workload of the file, or of the plan's own summary, at the rate or with the callers asked for."""
    if rate_rps is not None and callers is not None:
        raise PlannerError("settings", "--concurrency", callers, "--request-rate is given too", "keep one of the two")
    workload = _planned_workload(planned) if path is None else read_workload(path)
    loops = [s.arrivals.concurrency for s in workload.streams.values() if isinstance(s.arrivals, ClosedLoop)]
    if rate_rps is not None:
        rates = {name: workload.mean_rate_rps(name) for name in workload.streams}
        for name, own_rps in rates.items():
            workload = workload.at_rate(name, own_rps * rate_rps / sum(rates.values()))
    elif callers is None and loops:
        callers = sum(loops)
    return Traffic(workload, callers, planned.traffic.prefix_share if path is None else 0.0)


def _planned_workload(planned: Plan) -> Workload:
    """Lengths and arrivals of the means and spreads that the plan was made for, in its busy stretches."""
    told, classes = planned.traffic, list(planned.slo.classes)
    if len(classes) > 1:
        problem = f"the plan's classes ({', '.join(classes)}) have lengths of their own"
        raise PlannerError("settings", "--workload", None, problem, "give the workload that was planned for")
    lengths = {"kind": "lognormal"} | {
        name: {"mean": summary.mean, "cv": summary.cv} for name, summary in (("isl", told.isl), ("osl", told.osl))
    }
    arrivals = {"kind": "gamma", "rate_rps": told.busy_rate_rps, "cv": told.arrival_cv}
    if not told.arrival_cv:
        arrivals = {"kind": "constant", "rate_rps": told.busy_rate_rps}
    return workload_from({"streams": {classes[0]: {"lengths": lengths, "arrivals": arrivals}}}, file="plan.yaml")


def _run(planned: Plan, traffic: Traffic, sample: Sample, seed: int) -> Outcome:
    fleet = _fleet(planned)
    block = next(iter(planned.pools.values())).engine.block_size
    cached = np.maximum(cached_tokens(sample, block_size_tokens=block), _shared(sample, traffic.prefix_share, block))
    closed = traffic.callers is not None or sample.arrival_s is None
    requests = Requests(
        prompt_tokens=sample.isl,
        output_tokens=sample.osl,
        cached_tokens=cached,
        arrival_s=np.empty(0) if closed or sample.arrival_s is None else sample.arrival_s,
    )
    if closed:
        return run_closed(fleet, requests, concurrency=traffic.callers or 1, seed=seed)
    return run_open(fleet, requests, seed=seed)


def _shared(sample: Sample, share: float, block_tokens: int) -> npt.NDArray[np.int64]:
    """A share of each prompt, in whole blocks and never the whole prompt."""
    whole = (sample.isl * share).astype(np.int64) // block_tokens * block_tokens
    return np.asarray(np.minimum(whole, sample.isl - 1), dtype=np.int64)


def _fleet(planned: Plan) -> Fleet:
    """The plan's pools as the simulator takes them: one that does both, or one for prefill and one for decode."""
    by_role = {pool.role: pool for pool in planned.pools.values()}
    if len(by_role) < len(planned.pools) or set(by_role) not in ({"mixed"}, {"prefill", "decode"}):
        roles = ", ".join(pool.role for pool in planned.pools.values())
        remedy = "keep one mixed pool, or one of prefill and one of decode"
        raise PlannerError("plan.yaml", "pools", roles, "no fleet that can be simulated", remedy)
    pools = {role: _pool(pool) for role, pool in by_role.items()}
    return (
        MixedFleet(pool=pools["mixed"])
        if "mixed" in pools
        else SplitFleet(prefill=pools["prefill"], decode=pools["decode"])
    )


def _pool(pool: PoolPlan) -> Pool:
    return Pool(engines=pool.replicas, costs=pool.costs.step_costs, rules=pool.rules)
