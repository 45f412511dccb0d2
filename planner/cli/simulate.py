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
from planner.cli.deployment import BLOCK_TOKENS, Deployment
from planner.cli.errors import INFEASIBLE, errors_as_exit_codes
from planner.files import read_devices, read_plan, read_prices, read_slo, read_workload
from planner.length_views import cached_tokens
from planner.library import shape_of_model
from planner.perf.rows import kv_dtype
from planner.perf.shipped import read_calibration, shipped_calibration
from planner.perf.work import storage
from planner.plan import Plan, PoolPlan
from planner.report.answers import pools_text
from planner.report.simulation import classes_of, outcome_lines, outcome_table, outcome_tree
from planner.report.values import print_lines
from planner.simulate import Fleet, MixedFleet, Outcome, Pool, Requests, SplitFleet, run_closed, run_open
from planner.slo import Slo, slo_from
from planner.types import PlannerError
from planner.workload import Sample, Workload, workload_from

# The class of traffic that stands in flags; with nothing promised, nothing is judged.
CLASS = "requests"
UNPROMISED: dict[str, object] = {"classes": {CLASS: {"e2e_ms": 1e12}}}


@dataclass(frozen=True)
class Run:
    """What is sent, to what; `callers` makes a closed loop, `prefix_share` of each prompt is in the cache."""

    what: str
    fleet: Fleet
    sample: Sample
    callers: int | None
    prefix_share: float = 0.0


def simulate_command(
    plan: flags.PlanFile = None,
    model: flags.ModelOrNone = None,
    quant: flags.Quant = None,
    kv_cache_dtype: flags.KvDtype = None,
    system: flags.System = "",
    devices: flags.OwnDevices = None,
    tp: flags.Tp = 1,
    pp: flags.Pp = 1,
    ep: flags.Ep = 1,
    replicas: flags.Replicas = 1,
    max_num_batched_tokens: flags.BatchedTokens = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    calibration: flags.CalibrationFile = None,
    slo: flags.SloFile = None,
    workload: flags.WorkloadFile = None,
    isl: flags.Isl = 1000,
    osl: flags.Osl = 500,
    request_rate: flags.RequestRate = None,
    concurrency: flags.Callers = None,
    requests: flags.Requests = 10_000,
    seed: flags.SeedOr0 = 0,
    as_json: flags.AsJson = False,
) -> None:
    """Send traffic to a plan, or to one deployment, under vLLM's scheduling rules. Exit code 3: the SLO is missed."""
    with errors_as_exit_codes("ferry simulate"):
        if plan is not None:
            planned = read_plan(plan)
            promised: Slo | None = read_slo(slo) if slo is not None else planned.slo
            traffic = _planned_workload(planned) if workload is None else read_workload(workload)
        else:
            promised = read_slo(slo) if slo is not None else None
            traffic = _flag_workload(isl, osl, request_rate) if workload is None else read_workload(workload)
        traffic, callers = _at(traffic, request_rate, concurrency)
        sample = traffic.sample(seed, requests)
        if plan is not None:
            share = planned.traffic.prefix_share if workload is None else 0.0
            run = Run(f"{planned.model} on {pools_text(planned)}", _fleet(planned), sample, callers, share)
        else:
            asked = _deployment(
                model,
                system,
                devices,
                quant,
                kv_cache_dtype,
                (tp, pp, ep),
                replicas,
                max_num_batched_tokens,
                max_num_seqs,
            )
            learnt = read_calibration(calibration) if calibration else shipped_calibration()
            terms = promised or slo_from(UNPROMISED, file="settings")
            pool = asked.pool(terms, traffic, sample, learnt, read_prices())
            run = Run(f"{asked.model} on {asked.text}", MixedFleet(pool=pool), sample, callers)
        outcome = _outcome(run, seed)
    _tell(run, outcome, promised, as_json=as_json)


def _tell(run: Run, outcome: Outcome, promised: Slo | None, *, as_json: bool) -> None:
    classes = classes_of(outcome, promised, run.sample.streams, run.sample.stream) if promised else []
    if as_json:
        typer.echo(json.dumps(outcome_tree(outcome, classes), indent=2))
    else:
        console = Console()
        print_lines(console, (run.what,))
        console.print(outcome_table(outcome))
        print_lines(console, outcome_lines(outcome, classes))
    if any(not one.met for one in classes):
        raise typer.Exit(INFEASIBLE)


def _at(workload: Workload, rate_rps: float | None, callers: int | None) -> tuple[Workload, int | None]:
    """The workload at the rate asked for, or the callers of a closed loop over its lengths."""
    if rate_rps is not None and callers is not None:
        raise PlannerError("settings", "--concurrency", callers, "--request-rate is given too", "keep one of the two")
    loops = [s.arrivals.concurrency for s in workload.streams.values() if isinstance(s.arrivals, ClosedLoop)]
    if rate_rps is not None:
        rates = {name: workload.mean_rate_rps(name) for name in workload.streams}
        for name, own_rps in rates.items():
            workload = workload.at_rate(name, own_rps * rate_rps / sum(rates.values()))
    elif callers is None and loops:
        callers = sum(loops)
    return workload, callers


def _flag_workload(isl: int, osl: int, rate_rps: float | None) -> Workload:
    # Without a rate there must be callers, and the gaps do not matter.
    stream = {
        "lengths": {"kind": "constant", "isl": isl, "osl": osl},
        "arrivals": {"kind": "poisson", "rate_rps": rate_rps or 1.0},
    }
    return workload_from({"streams": {CLASS: stream}}, file="settings")


def _planned_workload(planned: Plan) -> Workload:
    """Lengths and arrivals of the means and spreads that the plan was made for, in its busy stretches."""
    told, classes = planned.traffic, list(planned.slo.classes)
    if len(classes) > 1:
        problem = f"the plan's classes ({', '.join(classes)}) have lengths of their own"
        raise PlannerError("settings", "--workload", None, problem, "give the workload that was planned for")
    lengths: dict[str, object] = {"kind": "lognormal"}
    for name, summary in (("isl", told.isl), ("osl", told.osl)):
        lengths[name] = {"mean": summary.mean, "cv": summary.cv}
    arrivals: dict[str, object] = {"kind": "constant", "rate_rps": told.busy_rate_rps}
    if told.arrival_cv:
        arrivals |= {"kind": "gamma", "cv": told.arrival_cv}
    return workload_from({"streams": {classes[0]: {"lengths": lengths, "arrivals": arrivals}}}, file="plan.yaml")


def _deployment(
    model: str | None,
    system: str,
    own_devices: Path | None,
    quant: str | None,
    kv: str | None,
    degrees: tuple[int, int, int],
    replicas: int,
    budget_tokens: int | None,
    max_num_seqs: int | None,
) -> Deployment:
    for flag, value in (("--model", model), ("--system", system)):
        if not value:
            raise PlannerError("settings", flag, None, "it is needed", f"give {flag}, or --plan with a plan.yaml")
    shape, device = shape_of_model(model or ""), read_devices(own_devices).device(system)
    stored = storage(shape, quant)
    tp, pp, ep = degrees
    return Deployment(
        model=model or "", shape=shape, device=device, tp=tp, pp=pp, ep=ep, replicas=replicas, quant=quant,
        kv_dtype=kv or kv_dtype(stored, device.multiplies(stored.compute_dtype)),
        max_num_batched_tokens=budget_tokens, max_num_seqs=max_num_seqs,
    )  # fmt: skip


def _outcome(run: Run, seed: int) -> Outcome:
    sample = run.sample
    cached = np.maximum(cached_tokens(sample, block_size_tokens=BLOCK_TOKENS), _shared(sample, run.prefix_share))
    closed = run.callers is not None or sample.arrival_s is None
    requests = Requests(
        prompt_tokens=sample.isl,
        output_tokens=sample.osl,
        cached_tokens=cached,
        arrival_s=np.empty(0) if closed or sample.arrival_s is None else sample.arrival_s,
    )
    if closed:
        return run_closed(run.fleet, requests, concurrency=run.callers or 1, seed=seed)
    return run_open(run.fleet, requests, seed=seed)


def _shared(sample: Sample, share: float) -> npt.NDArray[np.int64]:
    """A share of each prompt, in whole blocks and never the whole prompt."""
    whole = (sample.isl * share).astype(np.int64) // BLOCK_TOKENS * BLOCK_TOKENS
    return np.asarray(np.minimum(whole, sample.isl - 1), dtype=np.int64)


def _fleet(planned: Plan) -> Fleet:
    """The plan's pools as the simulator takes them: one that does both, or one for prefill and one for decode."""
    by_role = {pool.role: _pool(pool) for pool in planned.pools.values()}
    if len(by_role) == len(planned.pools) == 1 and "mixed" in by_role:
        return MixedFleet(pool=by_role["mixed"])
    if len(by_role) == len(planned.pools) and set(by_role) == {"prefill", "decode"}:
        return SplitFleet(prefill=by_role["prefill"], decode=by_role["decode"])
    roles = ", ".join(pool.role for pool in planned.pools.values())
    remedy = "keep one mixed pool, or one of prefill and one of decode"
    raise PlannerError("plan.yaml", "pools", roles, "no fleet that can be simulated", remedy)


def _pool(pool: PoolPlan) -> Pool:
    engines = pool.replicas * pool.engine.data_parallel_size  # each rank batches for itself
    return Pool(engines=engines, costs=pool.costs.step_costs, rules=pool.rules)
