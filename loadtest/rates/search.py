"""Runs what `decide` asks for, one load after another, until the capacity is known. The thin shell of a search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from loadtest.interrupts import Interrupts
from loadtest.metrics import in_window
from loadtest.rates.capacity import Run
from loadtest.rates.decide import Done, Ending, Goal, Probe, Try, capacity, decide
from loadtest.rates.searched import Searched
from loadtest.rates.sequential import batches_of, requests_to_tell
from loadtest.rates.whole import not_served
from loadtest.report import Report, Verdict, build
from loadtest.spec import RunResult, RunSpec
from loadtest.types import Interrupted, Limits, LoadTestError, Slo

# A run begins with an empty server: what comes first meets less of a queue than what follows.
WARM_UP_SHARE = 0.1
FULL_RUN_FACTOR = 4
MIN_FULL_REQUESTS = 200
# At high rates more requests cost no time worth speaking of.
BRIEF_RUN_S, FULL_RUN_S = 3.0, 10.0
# Where the limit is long, a swamped server needs a while before its queue is as long: so many times the limit.
BRIEF_LIMITS, FULL_LIMITS = 5, 10

SpecAt = Callable[[float, int, int], RunSpec]
"""(requests per second, how many, seed) -> the load. Without a warm-up: the search sets it."""
Runner = Callable[[RunSpec], RunResult]


@dataclass(frozen=True, slots=True)
class Made:
    """One run of a search: why it was made, and what came out."""

    probe: Probe
    result: RunResult
    report: Report


def searched_slo(slo: Slo) -> tuple[Slo, float]:
    """The SLO of one request that a search counts by, and the share of requests that must meet it.

    A promised percentile becomes a limit. Raises LoadTestError also where limits ask for different shares.
    """
    means = [promise for promise in slo.promises if promise.percentile is None]
    if means:
        raise LoadTestError(f"a search counts requests, and {means[0].metric} is promised as a mean: promise a limit")
    limits = {f"{promise.metric}_ms": promise.limit_ms for promise in slo.promises}
    fields = ("ttft_ms", "tpot_ms", "e2e_ms", "max_gap_ms")
    stricter = {
        name: min(value for value in (getattr(slo, name), limits.get(name)) if value is not None)
        for name in fields
        if getattr(slo, name) is not None or name in limits
    }
    if not stricter:
        raise LoadTestError("a search needs an SLO: --goodput 'ttft:500 tpot:50', or --slo FILE")
    shares = [promise.percentile / 100 for promise in slo.promises if promise.percentile is not None]
    if not shares or any(getattr(slo, name) is not None for name in fields):
        shares.append(slo.attainment)
    if len(set(shares)) > 1:
        asked = ", ".join(f"{share:g}" for share in sorted(set(shares)))
        raise LoadTestError(f"a search counts by one share, and the SLO has {asked}: choose limits with --goodput")
    wanted = shares[0]
    if not 0 < wanted < 1:
        raise LoadTestError(f"a share of {wanted:g} can never be shown by counting: ask for 0.99, say")
    return replace(slo, promises=(), attainment=wanted, **stricter), wanted


def search(
    spec_at: SpecAt,
    slo: Slo,
    goal: Goal,
    runner: Runner,
    *,
    seed: int = 0,
    requests: int | None = None,
    max_time_s: float = math.inf,
    on_run: Callable[[Made], None] | None = None,
    interrupts: Interrupts | None = None,
) -> Searched:
    """The highest rate at which the share `goal.wanted` meets `slo`.

    `requests` of a brief run at least; None: as many as the sequential test needs for a clear verdict. Interrupted, or
    when the next run would end after `max_time_s`, the search ends with what it knows. So it does if the server serves
    nothing or is gone, and that run does not count, or if the next load cannot be made.

    `interrupts`: those that the caller holds, and `runner` hears too. Raises LoadTestError or KeyboardInterrupt if that
    is how the first run ended.
    """
    interrupts = interrupts or Interrupts()
    seeds = _seeds(seed)
    probes: list[Probe] = []
    why = ""
    began_ns = time.monotonic_ns()
    while isinstance(step := decide(probes, goal), Try):
        count = _requests(step, slo, requests or requests_to_tell(goal.wanted))
        if _since_s(began_ns) + count / step.rate_rps > max_time_s:
            step = Done(Ending.TIME_SPENT)
            break
        if_it_fails = Ending.NO_LOAD
        try:
            with interrupts.at_once():
                spec = _counted(spec_at(step.rate_rps, count, next(seeds)), slo)
            if_it_fails = Ending.NOT_SERVED
            made = _made(step, runner(spec), slo)
            if on_run is not None:
                on_run(made)
        except (LoadTestError, KeyboardInterrupt) as error:
            if not probes:
                raise
            why = str(error)
            step = Done(Ending.INTERRUPTED if isinstance(error, Interrupted | KeyboardInterrupt) else if_it_fails)
            break
        if made.result.interrupted:
            step = Done(Ending.INTERRUPTED)
            break
        if why := not_served(made.result.records):
            step = Done(Ending.NOT_SERVED)
            break
        probes.append(made.probe)
    assert isinstance(step, Done)
    return Searched(goal, step.ending, capacity(probes, goal), tuple(probes), _since_s(began_ns), why)


def run_lengths_s(slo: Slo) -> tuple[float, float]:
    """What a brief run and a full one last at least, in seconds."""
    waited_ms = next((limit for limit in (slo.ttft_ms, slo.e2e_ms) if limit is not None), 0.0)
    return max(BRIEF_RUN_S, BRIEF_LIMITS * waited_ms / 1e3), max(FULL_RUN_S, FULL_LIMITS * waited_ms / 1e3)


def _requests(step: Try, slo: Slo, brief: int) -> int:
    """How many requests a run has; `brief`: of a brief one at least."""
    brief_s, full_s = run_lengths_s(slo)
    full = max(FULL_RUN_FACTOR * brief, MIN_FULL_REQUESTS)
    least, least_s = (brief, brief_s) if step.brief else (full, full_s)
    return math.ceil((1 + WARM_UP_SHARE) * max(least, least_s * step.rate_rps))


def _counted(spec: RunSpec, slo: Slo) -> RunSpec:
    """The load as a search runs it: by one SLO, with a warm-up, open."""
    return replace(spec, slo=slo, class_slos={}, warmup_s=_warmup_s(spec), limits=_unbounded(spec.limits))


def _since_s(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / 1e9


def _made(step: Try, result: RunResult, slo: Slo) -> Made:
    report = build(result)
    kept = in_window(result.records, result.start_ns, result.spec.warmup_s)
    run = Run(step.rate_rps, batches_of(kept, slo))
    return Made(Probe(run, step.brief, valid=report.verdict is not Verdict.INVALID), result, report)


def _warmup_s(spec: RunSpec) -> float:
    """Until the first requests of the run are due, which do not count."""
    due_s = sorted(job.due_s for job in spec.jobs if job.due_s is not None)
    return due_s[math.ceil(len(due_s) * WARM_UP_SHARE / (1 + WARM_UP_SHARE))] if due_s else 0.0


def _unbounded(limits: Limits) -> Limits:
    """Open loops only: a bound on what is in flight would slow the load down instead of showing the queue."""
    return replace(limits, concurrency=None, stop_after_s=None)


def _seeds(seed: int) -> Iterator[int]:
    """One list for every search of the seed, with independent entries."""
    sequence = np.random.SeedSequence(seed)
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0])
