"""Flags that a load has no use for: they are refused, lest its figures be taken for those of another load. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from loadtest.arrivals import Family
from loadtest.load_plan import LoadPlan
from loadtest.types import LoadTestError
from planner import RequestTrace

GAPS = ("--burstiness", "--arrivals", "--cv")
RATES = ("--ramp-up-start-rps", "--on-off")
SPREADS = ("--random-range-ratio", "--isl-cv", "--osl-cv")
PREFIXES = ("--prefix-prompt-length", "--num-prefix-prompts")
TURNS = ("--turns", "--think-s", "--think-cv")


@dataclass(frozen=True, slots=True)
class Unused:
    """These flags do nothing `where`; `instead` is what to do about it."""

    flags: tuple[str, ...]
    where: str
    instead: str

    def check(self, given: Collection[str]) -> None:
        """Raises LoadTestError if one of the flags is given."""
        named = [flag for flag in self.flags if flag in given]
        if named:
            does = "do" if len(named) > 1 else "does"
            raise LoadTestError(f"{', '.join(named)} {does} nothing {self.where}: {self.instead}")


_Case = Callable[[LoadPlan], bool]

# What the flags alone tell.
CASES: tuple[tuple[_Case, Unused], ...] = (
    (
        lambda plan: plan.workload is not None,
        Unused(
            (*GAPS, *RATES, "--rate-file", "--isl", "--osl", *SPREADS, *PREFIXES, *TURNS),
            "with --workload",
            "its file says when requests come and how long they are; change it there",
        ),
    ),
    (
        lambda plan: plan.workload is not None and plan.slo is None,
        Unused(("--slo-class",), "with --workload", "its streams carry the names of their classes"),
    ),
    (
        lambda plan: plan.trace is not None,
        Unused((*SPREADS, *PREFIXES, *TURNS), "with --trace", "lengths, shared beginnings and turns are the trace's"),
    ),
    (
        lambda plan: plan.dataset is not None,
        Unused(("--isl", *SPREADS, *PREFIXES), "with --dataset-path", "prompts are sent as the data has them"),
    ),
    (
        lambda plan: plan.trace is None,
        Unused(("--trace-format", "--trace-keep"), "without --trace", "leave it out, or give a trace"),
    ),
    (
        lambda plan: plan.family is not None,
        Unused(("--burstiness",), "with --arrivals", "--cv says how uneven the gaps of gamma and weibull are"),
    ),
    (
        lambda plan: plan.family not in (Family.GAMMA, Family.WEIBULL),
        Unused(("--cv",), "without --arrivals gamma or weibull", "give one of them, or --burstiness instead"),
    ),
    (
        lambda plan: plan.rate_file is not None,
        Unused(("--request-rate", *RATES), "with --rate-file", "the rates are those of the file"),
    ),
    (
        lambda plan: not plan.prefix_tokens,
        Unused(("--num-prefix-prompts",), "without --prefix-prompt-length", "say how long they are"),
    ),
    (
        lambda plan: plan.turns == 1 or (plan.turns == 0 and plan.dataset is None),
        Unused(("--think-s", "--think-cv"), "in conversations of one turn", "give --turns"),
    ),
    (lambda plan: not plan.think_s, Unused(("--think-cv",), "without --think-s", "give the mean pause")),
    (lambda plan: not plan.tenants, Unused(("--tenant-header",), "without --tenant", "name a tenant")),
    (
        lambda plan: plan.workload is None and not plan.slo_class,
        Unused(("--class-header",), "where requests have no class", "give --slo-class, --slo or --workload"),
    ),
    (
        lambda plan: plan.slo is not None,
        Unused(("--slo-attainment-fraction",), "with --slo", "each class of the file has its `attainment`"),
    ),
)

# What is known later: the rate of a run, and what is in a trace.
_WITHOUT_RATE = Unused(
    (*GAPS, *RATES), "where nothing comes at a rate", "give a --rate-file, or a --request-rate that is not inf"
)
_OWN_TIMES = Unused(
    ("--request-rate", *GAPS, *RATES, "--rate-file"),
    "with a trace that has its own times",
    "leave it out; --trace-keep makes the load lighter",
)
_OWN_ISL = Unused(("--isl",), "with a trace that has the lengths of its prompts", "leave it out")
_OWN_OSL = Unused(("--osl",), "with a trace that has the lengths of its answers", "leave it out")


def check_flags(plan: LoadPlan) -> None:
    """Raises LoadTestError for flags that do nothing, as far as the flags alone tell."""
    for applies, unused in CASES:
        if applies(plan):
            unused.check(plan.given)


def check_rate(plan: LoadPlan) -> None:
    """The same of what begins at a rate, if it has one: each run of a search has its own. Raises LoadTestError."""
    if plan.rate_file is None and math.isinf(plan.request_rate_rps):
        _WITHOUT_RATE.check(plan.given)


def check_trace(plan: LoadPlan, trace: RequestTrace, *, recorded_apart: bool) -> None:
    """The same of what this trace has. Raises LoadTestError.

    `recorded_apart`: its sessions begin at times of ours.
    """
    if not recorded_apart:
        _OWN_TIMES.check(plan.given)
    if all(one.input_tokens is not None for one in trace.requests):
        _OWN_ISL.check(plan.given)
    if all(one.output_tokens is not None for one in trace.requests):
        _OWN_OSL.check(plan.given)
