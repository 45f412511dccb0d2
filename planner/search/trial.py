"""Simulates a fleet under the declared arrivals and judges it by every promise of every class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.plan import Attainment, ClassPrediction, Quantiles
from planner.queueing import Metric
from planner.queueing.costs import Floats
from planner.search.fleets import Fleet, Pool
from planner.search.traffic import ClassTraffic, Traffic
from planner.simulate import Fleet as SimulatedFleet
from planner.simulate import Interval, MixedFleet, Outcome, SplitFleet, run_open
from planner.simulate import Pool as SimulatedPool
from planner.simulate.outcome import WARM_UP_SHARE, batch_means
from planner.simulate.verify import FIRST_RUN, GROWTH, MIN_LATE_ANSWERS

# Bigger fleets are simulated in part, with their share of the traffic. That errs on the safe side: more engines
# even out bursts better.
MOST_ENGINES = 8
CONFIDENCE = 0.95
PERCENTILES = (0.5, 0.9, 0.99)
RAREST = 20  # requests of a class in a run; one that comes more rarely is judged by all requests


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one simulated fleet did. `clear`: a longer run could not tell otherwise."""

    met: bool
    clear: bool
    requests: int
    classes: Mapping[str, ClassPrediction]


def try_fleet(fleet: Fleet, traffic: Traffic, *, seed: int, most_requests: int) -> Trial:
    """Longer and longer runs until the verdict is clear. Equal seeds give rivals the same requests."""
    share = min(1.0, MOST_ENGINES / max(pool.replicas * float(pool.designs.ranks[pool.row]) for pool in fleet.pools))
    simulated = _simulated(fleet, share)
    # Whole engines stand for the part, so the traffic is what those engines would get.
    engines = [pool.engines for pool in _pools(simulated)]
    wholes = [pool.replicas * float(pool.designs.ranks[pool.row]) for pool in fleet.pools]
    part = min(1.0, max(engine / whole for engine, whole in zip(engines, wholes, strict=True)))
    played = traffic if part == 1.0 else traffic.scaled(part)
    count = min(FIRST_RUN * 2, most_requests)
    while True:
        requests, classes = played.requests(count, seed=seed)
        trial = _judged(run_open(simulated, requests, seed=seed), classes, traffic.classes)
        if trial.clear or count >= most_requests:
            return trial
        count = min(count * GROWTH, most_requests)


def _pools(fleet: SimulatedFleet) -> tuple[SimulatedPool, ...]:
    return (fleet.pool,) if isinstance(fleet, MixedFleet) else (fleet.prefill, fleet.decode)


def _simulated(fleet: Fleet, share: float) -> SimulatedFleet:
    pools = [_pool(pool, share) for pool in fleet.pools]
    if len(pools) == 1:
        return MixedFleet(pool=pools[0])
    decode = fleet.pools[1]
    return SplitFleet(
        prefill=pools[0],
        decode=pools[1],
        transfer_s=float(decode.designs.transfer_s[decode.row]),
        transfer_token_s=float(decode.designs.transfer_token_s[decode.row]),
    )


def _pool(pool: Pool, share: float) -> SimulatedPool:
    ranks = float(pool.designs.ranks[pool.row])
    return SimulatedPool(
        engines=max(1, round(pool.replicas * ranks * share)),
        costs=pool.designs.costs.row(pool.row),
        rules=pool.designs.rules(pool.row),
    )


def _judged(outcome: Outcome, classes: npt.NDArray[np.int64], known: tuple[ClassTraffic, ...]) -> Trial:
    found: dict[str, ClassPrediction] = {}
    met, clear, lost = True, True, False
    for at, one in enumerate(known):
        chosen = classes == at
        own = _of_class(outcome, chosen) if chosen.sum() > RAREST else outcome
        prediction, verdict, sure = _class_verdict(own, one)
        found[one.name] = prediction
        met, clear, lost = met and verdict, clear and sure, lost or (sure and not verdict)
    return Trial(met=met, clear=clear or lost, requests=len(outcome.sent_s), classes=found)


def _of_class(outcome: Outcome, chosen: npt.NDArray[np.bool_]) -> Outcome:
    return Outcome(
        sent_s=outcome.sent_s[chosen],
        first_token_s=outcome.first_token_s[chosen],
        finish_s=outcome.finish_s[chosen],
        output_tokens=outcome.output_tokens[chosen],
        engines=outcome.engines,
    )


def _class_verdict(outcome: Outcome, one: ClassTraffic) -> tuple[ClassPrediction, bool, bool]:
    """(prediction, whether every promise is met, whether a longer run could not tell otherwise)."""
    promise = one.promise
    shares = [(goal.share, outcome.met_share(goal.metric, goal.limit_s)) for goal in promise.goals]
    limits = promise.limits or _tightest(one)
    joint = _joint_share(outcome, limits)
    if promise.limits:
        shares.append((promise.attainment, joint))
    means_met = all(float(np.mean(outcome.values_s(metric))) <= limit_s for metric, limit_s in promise.means.items())
    met = means_met and all(found.value >= share for share, found in shares)
    missed = not means_met or any(found.high < share for share, found in shares)
    enough = all(len(outcome.sent_s) * (1 - share) >= MIN_LATE_ANSWERS for share, _ in shares)
    sure = missed or (enough and all(found.low >= share for share, found in shares))
    required = promise.attainment
    prediction = ClassPrediction(
        ttft_ms=_quantiles(outcome, "ttft"),
        tpot_ms=_quantiles(outcome, "tpot") if len(outcome.values_s("tpot")) else None,
        e2e_ms=_quantiles(outcome, "e2e"),
        attainment=Attainment(value=joint.value, low=_share(joint.low), high=_share(joint.high), required=required),
        met=met,
    )
    return prediction, met, sure


def _tightest(one: ClassTraffic) -> dict[Metric, float]:
    """The highest percentile's limit of each metric, which a request of a class without limits is held to."""
    limits: dict[Metric, float] = {}
    for goal in sorted(one.promise.goals, key=lambda goal: goal.share):
        limits[goal.metric] = goal.limit_s
    return limits


def _joint_share(outcome: Outcome, limits: Mapping[Metric, float]) -> Interval:
    """Share of requests that meet every limit; an answer of one token has no TPOT to miss."""
    values: dict[Metric, Floats] = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2e": outcome.e2e_s}
    good = np.ones(len(outcome.sent_s), dtype=bool)
    for metric, limit_s in limits.items():
        good &= ~(values[metric] > limit_s)
    kept = good[int(len(good) * WARM_UP_SHARE) :].astype(float)
    return batch_means(kept, np.mean, confidence=CONFIDENCE)


def _quantiles(outcome: Outcome, metric: Metric) -> Quantiles:
    p50, p90, p99 = (1e3 * outcome.percentile_s(metric, share) for share in PERCENTILES)
    return Quantiles(p50=p50, p90=p90, p99=p99)


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))
