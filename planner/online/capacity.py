"""The rate that a replica bears now: the plan's, at other lengths, and as the observed attainment corrects it."""

from __future__ import annotations

from dataclasses import dataclass

from planner.online.observed import Observed
from planner.plan import Plan, PoolPlan, Role
from planner.slo import Metric

# A promise broken at some rate per replica: the next guess is so much below it.
BELOW_BROKEN = 0.1
# One window may not change the belief by more, either way. Where it would have to, load is not what is wrong.
MOST_FACTOR = 2.0
ANSWERS_FOR: dict[Role, tuple[Metric, ...]] = {
    "prefill": ("ttft", "e2e"),
    "decode": ("tpot", "e2e"),
    "mixed": ("ttft", "tpot", "e2e"),
}


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """`replica_rps`: what one replica bears; `why` it is not what the plan says, empty where it is."""

    replica_rps: float
    why: tuple[str, ...] = ()


def capacity(plan: Plan, pool: PoolPlan, name: str, observed: Observed, busy_rps: float) -> Capacity:
    """Of a pool, at `busy_rps` of requests of the observed lengths."""
    factor = _lengths_factor(plan, pool, observed)
    planned_rps = pool.replica_rps * factor
    why = [f"lengths change a replica's rate by {factor - 1:+.0%}"] if abs(factor - 1) > 0.005 else []
    ready = observed.pools[name].ready
    if ready == 0:
        return Capacity(replica_rps=planned_rps, why=tuple(why))
    each_rps = busy_rps / ready
    known = {metric: observed.attained[metric] for metric in ANSWERS_FOR[pool.role] if metric in observed.attained}
    missed = [metric for metric, attained in known.items() if attained.missed]
    if missed:
        broken = f"{' and '.join(missed).upper()} missed at {each_rps:.3g} requests/s per replica"
        if each_rps * (1 - BELOW_BROKEN) * MOST_FACTOR < planned_rps:
            why.append(f"{broken}, which should bear {planned_rps:.3g}: more replicas would not mend it")
            return Capacity(replica_rps=planned_rps, why=tuple(why))
        found_rps = min(planned_rps, each_rps * (1 - BELOW_BROKEN))
        if found_rps < planned_rps:
            why.append(broken)
        return Capacity(replica_rps=found_rps, why=tuple(why))
    if known and all(attained.met for attained in known.values()) and each_rps > planned_rps:
        why.append(f"the SLO held at {each_rps:.3g} requests/s per replica")
        return Capacity(replica_rps=min(each_rps, planned_rps * MOST_FACTOR), why=tuple(why))
    return Capacity(replica_rps=planned_rps, why=tuple(why))


def _lengths_factor(plan: Plan, pool: PoolPlan, observed: Observed) -> float:
    """Planned over observed need of a mean request: of engine time or of the cache, whichever grew more."""
    isl, osl = plan.traffic.isl.mean, plan.traffic.osl.mean
    now_isl, now_osl = observed.isl_mean or isl, observed.osl_mean or osl
    by_time = _work_s(pool, isl, osl) / _work_s(pool, now_isl, now_osl)
    by_cache = _held_tokens(isl, osl) / _held_tokens(now_isl, now_osl)
    return by_time if pool.role == "prefill" else min(by_time, by_cache)


def _work_s(pool: PoolPlan, isl: float, osl: float) -> float:
    """Engine time that one request takes, in a pool of its role."""
    costs = pool.costs
    prompt_s = costs.prefill_token_s * isl + costs.prefill_square_s * isl * isl
    tokens_s = max(0.0, osl - 1) * (costs.sequence_s + costs.kv_token_s * (isl + osl / 2))
    # Of a step's fixed time, a request's part: as many share it as run together at most.
    tokens_s += max(0.0, osl - 1) * costs.step_s / pool.engine.max_num_seqs
    return {"prefill": prompt_s, "decode": tokens_s, "mixed": prompt_s + tokens_s}[pool.role] + 1e-12


def _held_tokens(isl: float, osl: float) -> float:
    """Tokens in the cache times the steps for which a request holds them."""
    return (isl + osl / 2) * max(1.0, osl)
