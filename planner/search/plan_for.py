"""The front door of the search: closed forms over everything, simulation of the best, answers with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from planner.search.answers import Answer, Candidate, Infeasible, Point
from planner.search.changes import changes
from planner.search.closed import Found, prepare, search, with_shares
from planner.search.confidence import Doubt, doubt
from planner.search.fleets import Fleet, shortlist
from planner.search.highest import rates_to_confirm
from planner.search.infeasible import infeasible
from planner.search.question import PlanQuestion
from planner.search.spot_terms import Staffing, on_demand_only, staffing
from planner.search.traffic import Traffic
from planner.search.trial import Trial, try_fleet
from planner.search.write import Chosen, stage_weights, write

# How far a simulation may raise or lower the replicas that the closed forms ask for.
MOST_TRIALS = 4
STEP_SHARE = 0.1
MOST_POINTS = 300


def plan_for(question: PlanQuestion) -> Answer | Infeasible:
    """The plans that hold the promise, or why there is none. Raises PlannerError for a question that makes no sense."""
    traffic = Traffic.under(question.slo, question.workload)
    if not question.maximise_rate:
        return _plan_at(question, traffic)
    prepared = prepare(question, traffic)
    for at_rate in rates_to_confirm(prepared, traffic, lambda fleet: _within(question, fleet)):
        answer = _plan_at(question, at_rate)
        if isinstance(answer, Answer):
            return answer
    return _plan_at(question, traffic)


def _plan_at(question: PlanQuestion, traffic: Traffic) -> Answer | Infeasible:
    found = _search(question, traffic)
    allowed = [fleet for fleet in found.fleets if _within(question, fleet)]
    if not allowed:
        return infeasible(question, found)
    tried = [one for fleet in shortlist(allowed, question.verify_top) if (one := _settle(question, found, fleet))]
    chosen = [one for one in _choices(question, tried) if _accepted(question, one)]
    if not chosen:
        return infeasible(question, found, tried=[one.chosen for one in tried])
    return _answer(question, found, chosen, verified=len(tried))


def _search(question: PlanQuestion, traffic: Traffic) -> Found:
    """Whole devices first; where a single one is enough, its fractions as well."""
    found = search(prepare(question, traffic))
    parts = with_shares(question, found) if question.space.fractions else ()
    if not parts:
        return found
    return search(prepare(question, traffic, (*question.devices, *parts)))


def _within(question: PlanQuestion, fleet: Fleet) -> bool:
    """Whether it keeps the limits on GPUs and dollars; spot may bring the dollars down later."""
    few = question.total_gpus is None or fleet.gpus <= question.total_gpus
    dear = question.most_usd_per_hour is not None and fleet.usd_per_hour > question.most_usd_per_hour
    return few and (question.spot is not None or not dear)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A fleet at the fewest replicas that the simulation found enough, or its best try; and how sure that is."""

    chosen: Chosen
    doubt: Doubt


def _settle(question: PlanQuestion, found: Found, fleet: Fleet) -> Tried | None:
    """Simulate, and raise or lower the replicas until the fewest that hold are known."""
    traffic = found.traffic
    trial = _try(question, fleet, traffic)
    best: tuple[Fleet, Trial] | None = (fleet, trial) if trial.met else None
    current = fleet
    for _ in range(MOST_TRIALS - 1):
        following = _smaller(current, traffic) if trial.met else _larger(current)
        if following is None or (best is not None and not trial.met) or not _within(question, following):
            break
        current, trial = following, _try(question, following, traffic)
        if trial.met:
            best = (current, trial)
        elif best is not None:
            break
    held, shown = best or (current, trial)
    trust = tuple(before.replicas / after.replicas for before, after in zip(fleet.pools, held.pools, strict=True))
    pair = found.prepared.forms.pairs[int(held.pools[-1].designs.pair[held.pools[-1].row])]
    doubts = doubt(held, traffic, found.prepared.forms.bases[pair.base].sigma, trust)
    return Tried(chosen=_staffed(question, found, held, shown, doubts), doubt=doubts)


def _try(question: PlanQuestion, fleet: Fleet, traffic: Traffic) -> Trial:
    return try_fleet(fleet, traffic, seed=question.seed, most_requests=question.most_requests)


def _smaller(fleet: Fleet, traffic: Traffic) -> Fleet | None:
    """One replica, or a tenth of them, less where there is most to spare; None at one replica each."""
    spare = [pool.replicas * pool.replica_rps / traffic.busy_rate_rps for pool in fleet.pools]
    order = sorted(range(len(fleet.pools)), key=lambda at: -spare[at])
    for at in order:
        pool = fleet.pools[at]
        fewer = pool.replicas - max(1, int(pool.replicas * STEP_SHARE))
        if fewer >= 1 and spare[at] * fewer / pool.replicas > 0.6:
            return _with(fleet, at, fewer)
    return None


def _larger(fleet: Fleet) -> Fleet:
    """One replica, or a tenth of them, more in every pool."""
    return Fleet(tuple(pool.times(pool.replicas + max(1, int(pool.replicas * STEP_SHARE))) for pool in fleet.pools))


def _with(fleet: Fleet, at: int, replicas: int) -> Fleet:
    pools = list(fleet.pools)
    pools[at] = pools[at].times(replicas)
    return Fleet(tuple(pools))


def _staffed(question: PlanQuestion, found: Found, fleet: Fleet, trial: Trial, doubts: Doubt) -> Chosen:
    bought: list[Staffing] = []
    for pool in fleet.pools:
        weights_bytes = stage_weights(found.prepared, pool)
        bought.append(staffing(question, pool, found.traffic, weights_bytes))
    chosen = Chosen(
        fleet=fleet,
        staffing=tuple(bought),
        trial=trial,
        probability=doubts.probability(tuple(pool.replicas for pool in fleet.pools)),
    )
    if question.total_gpus is not None and chosen.gpus > question.total_gpus:
        return replace(chosen, staffing=tuple(on_demand_only(question, pool) for pool in fleet.pools))
    return chosen


def _choices(question: PlanQuestion, tried: Sequence[Tried]) -> Iterator[Chosen]:
    """Each fleet that held, and the same enlarged until it is safe."""
    for one in tried:
        if not one.chosen.trial.met:
            continue
        yield one.chosen
        least = tuple(pool.replicas for pool in one.chosen.fleet.pools)
        goal = max(question.safe_probability, question.confidence or 0.0)
        replicas = one.doubt.replicas_for(goal, least)
        if replicas is not None and replicas != least:
            pools = tuple(pool.times(n) for pool, n in zip(one.chosen.fleet.pools, replicas, strict=True))
            yield Chosen(
                fleet=Fleet(pools),
                staffing=tuple(on_demand_only(question, pool) for pool in pools),
                trial=one.chosen.trial,
                probability=one.doubt.probability(replicas),
                enlarged=True,
            )


def _accepted(question: PlanQuestion, chosen: Chosen) -> bool:
    few = question.total_gpus is None or chosen.gpus <= question.total_gpus
    cheap = question.most_usd_per_hour is None or chosen.usd_per_hour <= question.most_usd_per_hour
    return few and cheap and chosen.sure >= (question.confidence or 0.0)


def _answer(question: PlanQuestion, found: Found, chosen: Sequence[Chosen], *, verified: int) -> Answer:
    cheapest = min(chosen, key=lambda one: (one.usd_per_hour, one.gpus, -one.sure))
    fewest = min(chosen, key=lambda one: (one.gpus, one.usd_per_hour, -one.sure))
    safe = [one for one in chosen if one.sure >= question.safe_probability]
    safest = (
        min(safe, key=lambda one: (one.usd_per_hour, -one.sure))
        if safe
        else max(chosen, key=lambda one: (one.sure, -one.usd_per_hour))
    )
    written: dict[int, Candidate] = {}

    def candidate(one: Chosen) -> Candidate:
        if id(one) not in written:
            tried = replace(one, trial=_try(question, one.fleet, found.traffic)) if one.enlarged else one
            written[id(one)] = Candidate(name=one.fleet.name, plan=write(tried, found.prepared, found.traffic))
        return written[id(one)]

    return Answer(
        cheapest=candidate(cheapest),
        fewest_gpus=candidate(fewest),
        safest=candidate(safest),
        safe_probability=question.safe_probability,
        pareto=tuple(candidate(one) for one in _frontier(chosen)),
        points=tuple(_point(fleet) for fleet in found.fleets[:MOST_POINTS]),
        changes=tuple(changes(found)),
        considered=found.considered,
        fitting=found.fitting,
        verified=verified,
        skipped=found.prepared.skipped,
        warnings=tuple(_price_warnings(question, chosen)),
    )


def _frontier(chosen: Iterable[Chosen]) -> list[Chosen]:
    """Those that no other beats in cost, GPUs and probability at once; cheapest first."""
    ranked = sorted(chosen, key=lambda one: (one.usd_per_hour, one.gpus, -one.sure))
    kept: list[Chosen] = []
    for one in ranked:
        if not any(other.gpus <= one.gpus and other.sure >= one.sure for other in kept):
            kept.append(one)
    return kept


def _point(fleet: Fleet) -> Point:
    return Point(
        name=fleet.name,
        device=fleet.pools[-1].device.name,
        disaggregated=fleet.disaggregated,
        usd_per_hour=fleet.usd_per_hour,
        gpus=fleet.gpus,
        rate_rps=fleet.rate_rps,
    )


def _price_warnings(question: PlanQuestion, chosen: Sequence[Chosen]) -> Iterator[str]:
    """Prices that are only a guess; how old they are is for the caller to say, who knows the day."""
    devices = {pool.device.name: pool.device for one in chosen for pool in one.fleet.pools}
    for device in devices.values():
        offer = question.prices.price(device, provider=question.provider, region=question.region).offer
        if offer.confidence == "low":
            yield f"the price of {device.whole} at {offer.provider} is uncertain ({offer.source}): give a prices file"
