"""One open-loop load three times: on the running engine, in the simulator, and in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.jobs import body, open_loop
from loadtest.runner import run
from loadtest.spec import RunSpec
from loadtest.texts import Segment, text_of
from loadtest.types import Limits, LoadTestError, Record, Target
from planner import Profile
from planner.queueing import EngineRules, Lengths, Metric, StepCosts, mixed_engine
from planner.simulate import MixedFleet, Outcome, Pool, Requests, draw_arrivals, run_open
from planner.simulate.outcome import WARM_UP_SHARE

SHARES = (0.5, 0.9, 0.99)
METRICS: tuple[Metric, ...] = ("ttft", "tpot")
FEWEST_TOKENS = 4

Lengthwise = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EngineLoad:
    """`share` of the rate at which the engine would be full; lengths are rows of (prompt words, output tokens)."""

    share: float
    rate_rps: float
    lengths: Lengthwise
    seed: int


@dataclass(frozen=True)
class Found:
    """Percentiles in ms by metric, in the order of SHARES."""

    load: EngineLoad
    measured: dict[Metric, tuple[float, ...]]
    simulated: dict[Metric, tuple[float, ...]]
    closed_form: dict[Metric, tuple[float, ...]] | None  # None: the batch would not fit


def draw_lengths(count: int, *, isl: float, osl: float, cv: float, longest: int, seed: int) -> Lengthwise:
    """Lognormal and independent, cut at `longest` tokens in all."""
    rng = np.random.default_rng([seed, 3])
    sigma = np.sqrt(np.log1p(cv * cv))
    drawn = [np.rint(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)) for mean in (isl, osl)]
    prompt = np.clip(drawn[0], FEWEST_TOKENS, longest - 2 * FEWEST_TOKENS)
    output = np.clip(drawn[1], FEWEST_TOKENS, longest - prompt)
    return np.column_stack([prompt, output]).astype(np.int64)


def loads_of(
    profile: Profile, costs: StepCosts, rules: EngineRules, lengths: Lengthwise, shares: Sequence[float], seed: int
) -> list[EngineLoad]:
    """Rates at `shares` of what keeps every engine of the profile busy all the time, or its places all taken."""
    sample = Lengths.from_sample(lengths)
    busy_rps = 1 / float(mixed_engine(costs, rules, sample, rate_rps=1.0).load)
    rates = busy_rps * np.linspace(0.01, 1.0, 100)[:-1]
    places = min(float(rules.max_num_seqs), float(rules.kv_tokens) / sample.mean_context_tokens)
    served = rates[np.asarray(mixed_engine(costs, rules, sample, rate_rps=rates).batch) <= places]
    full_rps = profile.replicas * profile.dp * float(served[-1] if len(served) else rates[0])
    return [EngineLoad(share, share * full_rps, lengths, seed) for share in shares]


def compare(
    target: Target, model: str, profile: Profile, costs: StepCosts, rules: EngineRules, load: EngineLoad
) -> Found:
    """The load on the engine, then the very same requests at the same times in the simulator.

    Raises LoadTestError if a request fails: a percentile without it would be a lie.
    """
    count = len(load.lengths)
    due_s = draw_arrivals(count, rate_rps=load.rate_rps, seed=load.seed)
    rng = np.random.default_rng([load.seed, 4])
    bodies = (
        body(target.endpoint, model, _prompt(int(isl), rng), int(osl), {"ignore_eos": True}, stream=True)
        for isl, osl in load.lengths
    )
    records = run(RunSpec(target, open_loop(bodies, due_s.tolist()), Limits())).records
    failed = [record for record in records if not record.ok]
    if failed:
        raise LoadTestError(f"{len(failed)} requests failed, the first: {failed[0].outcome}: {failed[0].detail}")
    ordered = sorted(records, key=lambda record: record.number)
    prompt = np.array([record.prompt_tokens or row[0] for record, row in zip(ordered, load.lengths, strict=True)])
    output = np.array([record.output_tokens for record in ordered])
    engines = profile.replicas * profile.dp
    requests = Requests(
        prompt_tokens=prompt, output_tokens=output, cached_tokens=np.zeros(count, np.int64), arrival_s=due_s
    )
    outcome = run_open(MixedFleet(pool=Pool(engines=engines, costs=costs, rules=rules)), requests)
    lengths = Lengths.from_sample(np.column_stack([prompt, output]))
    estimate = mixed_engine(costs, rules, lengths, rate_rps=load.rate_rps / engines)
    quantiles = {"ttft": estimate.ttft_s, "tpot": estimate.tpot_s}
    return Found(
        load=load,
        measured={metric: _measured_ms(ordered, metric) for metric in METRICS},
        simulated={metric: _simulated_ms(outcome, metric) for metric in METRICS},
        closed_form={metric: tuple(1e3 * float(quantiles[metric](share)) for share in SHARES) for metric in METRICS}
        if bool(estimate.fits)
        else None,
    )


def _prompt(words: int, rng: np.random.Generator) -> str:
    """One that no other request begins with."""
    return text_of([Segment(int(rng.integers(2**63)), words)])


def _measured_ms(records: Sequence[Record], metric: Metric) -> tuple[float, ...]:
    kept = records[int(len(records) * WARM_UP_SHARE) :]
    values = [record.ttft_ns if metric == "ttft" else record.tpot_ns for record in kept]
    known_ms = np.array([value for value in values if value is not None], float) / 1e6
    return tuple(float(np.quantile(known_ms, share)) for share in SHARES)


def _simulated_ms(outcome: Outcome, metric: Metric) -> tuple[float, ...]:
    return tuple(1e3 * outcome.percentile_s(metric, share) for share in SHARES)
