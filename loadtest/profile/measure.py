"""Runs the chosen loads, one after another, and makes points of what came back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.jobs import body, closed_loop
from loadtest.metrics import Distribution
from loadtest.profile.design import Trial
from loadtest.report import Report, build
from loadtest.runner import run
from loadtest.spec import RunSpec
from loadtest.texts import Segment, key_of, text_of
from loadtest.types import Interrupted, Job, Limits, LoadTestError, Outcome, Target
from planner import ProfilePoint

WARM_UP_REQUESTS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One trial, the point that it gave, and what is doubtful about it (the client was slow, words were no tokens)."""

    trial: Trial
    point: ProfilePoint
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurements:
    """The loads that were measured, in order, and what kept the others from it."""

    done: tuple[Measured, ...]
    stopped: LoadTestError | None = None


def measure(
    target: Target,
    model: str,
    trials: Sequence[Trial],
    *,
    seed: int = 0,
    ignore_eos: bool = True,
    timeout_s: float = 600.0,
    on_point: Callable[[Measured], None] | None = None,
) -> Measurements:
    """Each trial's point, in order, up to the first load of which a request fails or that is interrupted.

    The shortest and the longest load run once before, uncounted. `seed` chooses lengths; the words are new each time,
    so that an engine which was measured before finds none of them in its prefix cache.

    Raises:
        LoadTestError: if not one load could be measured.
    """
    salt = secrets.token_hex(8)
    rngs = [np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(len(trials) + 1)]
    for trial in (min(trials, key=lambda t: t.isl), max(trials, key=lambda t: t.isl)):
        few = replace(trial, concurrency=1, requests=WARM_UP_REQUESTS)
        _run(target, few, _jobs(target, model, few, rngs[-1], salt, ignore_eos=ignore_eos), timeout_s)
    found: list[Measured] = []
    for trial, rng in zip(trials, rngs, strict=False):
        jobs = _jobs(target, model, trial, rng, salt, ignore_eos=ignore_eos)
        try:
            report = _run(target, trial, jobs, timeout_s)
            point = point_of(trial, report)
        except LoadTestError as error:
            if not found:
                raise
            return Measurements(tuple(found), error)
        found.append(Measured(trial, point, (*report.faults, *report.warnings)))
        if on_point is not None:
            on_point(found[-1])
    return Measurements(tuple(found))


def point_of(trial: Trial, report: Report) -> ProfilePoint:
    """The point of one trial; lengths are the server's counts where it gives them.

    Raises LoadTestError where no answer tells its first token.
    """
    total = report.total
    ttft, tpot = _spread(total.distributions.get("ttft")), _spread(total.distributions.get("tpot"))
    if ttft is None:
        raise LoadTestError("the endpoint does not stream its answers: without a first token there is no TTFT")
    counted = total.prompt_tokens if total.prompt_tokens > 0 else float(trial.isl)  # NaN where nobody counted
    return ProfilePoint.model_validate(
        {
            "isl": counted,
            "osl": total.output_tokens,
            "concurrency": float(trial.concurrency),
            "requests": total.due,
            "spread": trial.spread,
            "ttft_ms": ttft,
            "tpot_ms": tpot if tpot is not None and min(tpot.values()) > 0 else None,  # 0: tokens came in one piece
            "out_tok_s": total.output_tokens_per_s,
        }
    )


def _run(target: Target, trial: Trial, jobs: list[Job], timeout_s: float) -> Report:
    limits = Limits(concurrency=trial.concurrency, timeout_s=timeout_s)
    report = build(run(RunSpec(target, jobs, limits)))
    failed = {outcome: why for outcome, why in report.total.details.items() if outcome is not Outcome.OK}
    if report.interrupted:
        raise Interrupted("interrupted")
    if failed:
        why = "; ".join(f"{outcome.value}: {detail}" for outcome, detail in failed.items())
        raise LoadTestError(f"the load of {trial.concurrency} x {trial.isl} tokens failed: {why}")
    return report


def _jobs(
    target: Target, model: str, trial: Trial, rng: np.random.Generator, salt: str, *, ignore_eos: bool
) -> list[Job]:
    return closed_loop(bodies(target.endpoint, model, trial, rng, salt, ignore_eos=ignore_eos))


def bodies(
    endpoint: str, model: str, trial: Trial, rng: np.random.Generator, salt: str, *, ignore_eos: bool
) -> Iterator[bytes]:
    """Every prompt is new, so that none is found in a prefix cache."""
    extra = {"ignore_eos": True} if ignore_eos else {}
    for osl in rng.permutation(output_lengths(trial)):
        prompt = text_of([Segment(key_of(salt, rng.integers(2**63)), trial.isl)])
        yield body(endpoint, model, prompt, int(osl), extra, stream=True)


def output_lengths(trial: Trial) -> np.ndarray:
    """Output tokens of each request: evenly from `osl` down by `spread` of it."""
    return np.maximum(1, np.rint(np.linspace(trial.osl * (1 - trial.spread), trial.osl, trial.requests)))


def _spread(found: Distribution | None) -> dict[str, float] | None:
    if found is None:
        return None
    at = found.completed_ms
    return {"mean": found.mean_ms, "p50": at[0.5], "p90": at[0.9], "p99": at[0.99]}
