"""The load that the flags ask for, as jobs: the same plan and tokenizer make the same bytes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loadtest.asks import Ask, mixed
from loadtest.goals import check_seen, read_goals
from loadtest.load_plan import LoadPlan
from loadtest.load_sources import recorded, replayed, synthetic
from loadtest.prompts import Form, Prompts
from loadtest.tokenizers import Tokenizer, WordCounter, tokenizer_of
from loadtest.types import Job, LoadTestError, Target
from loadtest.workloads import Bounds, at_total_rate, workload_asks
from planner import PlannerError, read_slo, read_workload, traffic_under

__all__ = ["Load", "LoadPlan", "load_for", "make_load"]


@dataclass(frozen=True, slots=True)
class Load:
    jobs: list[Job]
    notes: tuple[str, ...] = ()
    """What the user should know about them."""
    lasts_s: float | None = None
    """How long they are due, where that is known and not just the last due time."""


def load_for(plan: LoadPlan, target: Target) -> Load:
    """The load, with prompts counted as the plan's tokenizer does, if need be by asking the target.

    Raises:
        LoadTestError: for what cannot be had.
    """
    with tokenizer_of(plan.tokenizer, target, plan.model) as (tokenizer, note):
        load = make_load(plan, tokenizer)
    return replace(load, notes=(note, *load.notes)) if note else load


def make_load(plan: LoadPlan, tokenizer: Tokenizer | None = None) -> Load:
    """Without a tokenizer words are taken for tokens. Raises LoadTestError for what cannot be had."""
    tokenizer = tokenizer or WordCounter()
    # Times are drawn apart from lengths and texts: other lengths must not change when requests are due.
    times_rng = np.random.default_rng(np.random.SeedSequence(plan.seed).spawn(1)[0])
    extra = {**plan.extra, "ignore_eos": True} if plan.ignore_eos else plan.extra
    form = Form(plan.endpoint, plan.model, plan.stream, extra, plan.tenant_header, plan.class_header)
    with _told_by_planner():
        prompts = Prompts(form, tokenizer, plan.seed)
        asks, notes = _asks(plan, times_rng, tokenizer)
        _check_classes(plan, {ask.slo_class for ask in asks})
        jobs = prompts.jobs(mixed(asks, plan.models, plan.tenants, plan.seed))
    if not jobs:
        raise LoadTestError("no request is due in this time at this rate")
    return Load(jobs, (*notes, *prompts.notes), plan.lasts_s)


@contextlib.contextmanager
def _told_by_planner() -> Iterator[None]:
    """The planner's refusals, in the load test's own error."""
    try:
        yield
    except PlannerError as error:
        raise LoadTestError(f"{error}: {error.remedy}") from error


def _asks(plan: LoadPlan, rng: np.random.Generator, tokenizer: Tokenizer) -> tuple[list[Ask], list[str]]:
    given = {"--workload": plan.workload, "--trace": plan.trace, "--dataset-path": plan.dataset}
    named = [flag for flag, path in given.items() if path is not None]
    if len(named) > 1:
        raise LoadTestError(f"{' and '.join(named)} are two loads: give one")
    if plan.workload is not None:
        return _planned(plan, plan.workload), []
    if plan.trace is not None:
        return replayed(plan, plan.trace, rng)
    if plan.dataset is not None:
        return recorded(plan, plan.dataset, rng, tokenizer)
    return synthetic(plan, rng), []


def _planned(plan: LoadPlan, path: Path) -> list[Ask]:
    """What the planner's documents say, at the rate that the SLO promises or that was asked for."""
    workload = read_workload(path)
    if math.isfinite(plan.request_rate_rps):
        workload = at_total_rate(workload, plan.request_rate_rps)
    elif plan.slo is not None:
        workload = traffic_under(read_slo(plan.slo), workload)
    return workload_asks(workload, Bounds(plan.most_requests, plan.duration_s), plan.seed)


def _check_classes(plan: LoadPlan, names: set[str]) -> None:
    """Each class of the load has a goal in the SLO file, and one that can be seen. Raises LoadTestError."""
    if plan.slo is None:
        return
    goals = read_goals(plan.slo)
    if unknown := sorted(names - goals.keys()):
        raise LoadTestError(
            f"{plan.slo} promises nothing to class {', '.join(unknown)}: it has {', '.join(goals)}; a stream of "
            "--workload carries the name of its class"
        )
    for name in sorted(names) if not plan.stream else ():
        check_seen(goals[name], f"class {name} of {plan.slo}")
