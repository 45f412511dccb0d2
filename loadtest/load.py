"""The load that the flags ask for, as jobs. Reads trace and rate files; everything else is computed from the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.arrivals import Family, RateProfile, due_times_s, rate_file
from loadtest.jobs import body, closed_loop, open_loop, words
from loadtest.options import profile_of, spread_of
from loadtest.traces.files import load_trace
from loadtest.traces.replay import limited, spread_out, thinned
from loadtest.traces.types import Trace
from loadtest.types import Job, LoadTestError

DEFAULT_REQUESTS = 100


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What the flags of `ferry load run` say about the load."""

    endpoint: str
    model: str
    input_words: int
    output_tokens: int
    ignore_eos: bool
    stream: bool
    seed: int
    request_rate_rps: float
    burstiness: float
    family: Family | None
    cv: float
    ramp_from_rps: float | None
    bursts: str
    rate_file: Path | None
    trace: Path | None
    trace_format: str
    trace_keep: float
    concurrency: int | None
    requests: int | None
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class Load:
    jobs: list[Job]
    notes: tuple[str, ...] = ()
    """What the user should know about them."""


def make_load(plan: LoadPlan) -> Load:
    """Raises LoadTestError for what cannot be had."""
    # Times and texts are drawn apart: other lengths must not change when requests are due.
    times_rng, texts_rng = (np.random.default_rng(seed) for seed in np.random.SeedSequence(plan.seed).spawn(2))
    if plan.trace is not None:
        return _replay(plan, plan.trace, times_rng, texts_rng)
    if plan.rate_file is None and math.isinf(plan.request_rate_rps):
        return Load(closed_loop(_bodies(plan, _requests(plan), texts_rng)))
    due_s = due_times_s(
        _profile(plan, times_rng),
        spread_of(plan.family, plan.cv, plan.burstiness),
        times_rng,
        count=_requests(plan) if plan.duration_s is None else plan.requests,
        duration_s=plan.duration_s,
    )
    if not len(due_s):
        raise LoadTestError("no request is due in this time at this rate")
    return Load(open_loop(_bodies(plan, len(due_s), texts_rng), due_s.tolist()))


def _requests(plan: LoadPlan) -> int:
    if plan.requests is not None:
        return plan.requests
    if plan.duration_s is not None:
        raise LoadTestError("a closed loop of some duration needs --num-prompts: as many as it might send at most")
    return DEFAULT_REQUESTS


def _profile(plan: LoadPlan, rng: np.random.Generator) -> RateProfile:
    if plan.rate_file is None:
        return profile_of(plan.request_rate_rps, plan.ramp_from_rps, plan.bursts, plan.duration_s, rng)
    try:
        return rate_file(plan.rate_file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{plan.rate_file} cannot be read: {error}") from error


def _bodies(plan: LoadPlan, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    return (_body(plan, plan.input_words, plan.output_tokens, rng) for _ in range(count))


def _body(plan: LoadPlan, input_words: int, output_tokens: int, rng: np.random.Generator) -> bytes:
    extra = {"ignore_eos": True} if plan.ignore_eos else {}
    return body(plan.endpoint, plan.model, words(input_words, rng), output_tokens, extra, stream=plan.stream)


def _replay(plan: LoadPlan, path: Path, times_rng: np.random.Generator, texts_rng: np.random.Generator) -> Load:
    trace = load_trace(path, times_rng, format=plan.trace_format, duration_s=plan.duration_s)
    notes = [f"line {bad.number} of {path} was left out: {bad.why}" for bad in trace.bad_lines[:3]]
    if len(trace.bad_lines) > 3:
        notes.append(f"{len(trace.bad_lines)} lines of {path} were left out in all")
    trace = thinned(trace, plan.trace_keep, times_rng) if plan.trace_keep != 1 else trace
    if trace.requests and any(one.think_s is not None for one in trace.requests):
        trace = _spread(plan, trace, times_rng)
    trace = limited(trace, plan.requests, plan.duration_s)
    if not trace.requests:
        raise LoadTestError(f"nothing of {path} is left to send")
    if any(one.block_ids for one in trace.requests):
        notes.append("prompts have the trace's lengths, in words, and share no prefix")
    return Load(_trace_jobs(plan, trace, texts_rng), tuple(notes))


def _spread(plan: LoadPlan, trace: Trace, rng: np.random.Generator) -> Trace:
    """Sessions that were recorded apart begin at --request-rate."""
    sessions = len({one.session.partition("/")[0] for one in trace.requests})
    profile = profile_of(plan.request_rate_rps, plan.ramp_from_rps, plan.bursts, plan.duration_s, rng)
    return spread_out(
        trace, due_times_s(profile, spread_of(plan.family, plan.cv, plan.burstiness), rng, count=sessions)
    )


def _trace_jobs(plan: LoadPlan, trace: Trace, rng: np.random.Generator) -> list[Job]:
    numbers: dict[str, int] = {}
    jobs = []
    for number, one in enumerate(trace.requests):
        session = numbers.setdefault(one.session or f"#{number}", len(numbers))
        input_words = one.input_tokens if one.input_tokens is not None else plan.input_words
        output_tokens = one.output_tokens if one.output_tokens is not None else plan.output_tokens
        follows = one.think_s is not None
        jobs.append(
            Job(
                number=number,
                body=_body(plan, input_words, max(1, output_tokens), rng),
                session=session,
                turn=one.turn,
                due_s=None if follows else one.at_s,
                think_s=one.think_s or 0.0,
            )
        )
    return jobs
