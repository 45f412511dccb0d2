"""The load that a plan was made for. Pure."""

from __future__ import annotations

import math

from loadtest.load_plan import LoadPlan
from planner import Plan


def load_of(
    plan: Plan, share: float, *, endpoint: str, model: str, seconds: float, seed: int, tokenizer: str = ""
) -> LoadPlan:
    """The planned traffic at `share` of its rate, for so many seconds: arrivals, lengths and their spread as planned.

    One seed gives the same arrivals at every rate, but for their pace. Answers are made to have the planned lengths.
    """
    traffic = plan.traffic
    return LoadPlan(
        endpoint=endpoint,
        model=model,
        input_words=max(1, round(traffic.isl.mean)),
        output_tokens=max(1, round(traffic.osl.mean)),
        ignore_eos=True,
        stream=True,
        seed=seed,
        request_rate_rps=share * traffic.rate_rps,
        burstiness=burstiness_of(traffic.arrival_cv),
        family=None,
        cv=1.0,
        ramp_from_rps=None,
        bursts="",
        rate_file=None,
        trace=None,
        trace_format="",
        trace_keep=1.0,
        requests=None,
        duration_s=seconds,
        tokenizer=tokenizer,
        input_cv=traffic.isl.cv,
        output_cv=traffic.osl.cv,
        prefix_tokens=round(traffic.prefix_share * traffic.isl.mean),
    )


def burstiness_of(cv: float) -> float:
    """The gamma shape of gaps whose standard deviation is `cv` times their mean."""
    return 1 / (cv * cv) if cv > 0 else math.inf
