"""How many replicas each pool should have now. The same plan and the same observation have the same answer.

What is believed of a replica's capacity, and the traffic that it belongs to, are written into the new plan: so the next
call goes on from there, and nothing else remembers anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, sqrt

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from planner.documents import Document
from planner.online.capacity import capacity
from planner.online.observed import Observed, ReplanLimits
from planner.plan import Cost, LengthSummary, Plan, PoolPlan, TrafficPlan
from planner.types import PlannerError

ROUNDING = 1e-9
# What a count of requests may be off by chance: so many standard deviations.
NOISE_SIGMAS = 3.0
WARNING = "counts follow what was observed; the prediction is of the plan as first made"


class PoolReplan(Document):
    """`replicas` to have from now on, `before` until now; `needed` of them hold the SLO. `start`: replicas to order at
    once, for those that are missing or about to leave. `load`: the share of the pool's capacity that is used then."""

    replicas: PositiveInt
    before: PositiveInt
    needed: PositiveInt
    start: NonNegativeInt
    replica_rps: PositiveFloat
    load: NonNegativeFloat
    why: str


class Replan(Document):
    """`plan` is the one to go on with; give `calm` to the next call, in its Observed."""

    plan: Plan
    pools: dict[str, PoolReplan]
    calm: dict[str, NonNegativeInt]

    @property
    def changed(self) -> bool:
        """Whether any pool should have another number of replicas."""
        return any(pool.replicas != pool.before for pool in self.pools.values())


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What one pool should have before the limits of all together."""

    name: str
    pool: PoolPlan
    replica_rps: float
    needed: int
    spare: int
    replicas: int
    calm: int
    why: tuple[str, ...]

    @property
    def usd_per_hour(self) -> float:
        return self.pool.cost.usd_per_hour / self.pool.replicas

    def times(self, replicas: int, why: str) -> _Wanted:
        return _Wanted(
            name=self.name,
            pool=self.pool,
            replica_rps=self.replica_rps,
            needed=self.needed,
            spare=self.spare,
            replicas=replicas,
            calm=0,
            why=(*self.why, why),
        )


_Size = Callable[[_Wanted], float]


def replan(plan: Plan, observed: Observed, limits: ReplanLimits | None = None) -> Replan:
    """The plan that suits what was observed.

    Growth comes at once, shrinking late and by one. Headroom that the plan has beyond `needed` is kept. A pool of which
    nothing was observed, or one that the plan does not have, raises PlannerError.
    """
    bounds = limits or ReplanLimits()
    _check(plan, observed)
    busy_rps = observed.rate_rps * plan.traffic.busy_rate_rps / plan.traffic.rate_rps
    wanted = [_wanted(plan, name, pool, observed, bounds, busy_rps) for name, pool in plan.pools.items()]
    settled = _within(wanted, bounds)
    pools = {one.name: _of_pool(one, observed, busy_rps) for one in settled}
    return Replan(
        plan=_rewritten(plan, settled, observed),
        pools=pools,
        calm={one.name: one.calm for one in settled},
    )


def _check(plan: Plan, observed: Observed) -> None:
    for name in plan.pools.keys() ^ observed.pools.keys():
        problem = "the plan has no such pool" if name in observed.pools else "nothing was observed of it"
        raise PlannerError("observed", f"pools.{name}", name, problem, f"observe {', '.join(plan.pools)}")


def _wanted(
    plan: Plan, name: str, pool: PoolPlan, observed: Observed, limits: ReplanLimits, busy_rps: float
) -> _Wanted:
    now = capacity(plan, pool, name, observed, busy_rps)
    spare = pool.replicas - pool.needed
    needed = max(limits.least_replicas, 1, ceil(busy_rps / now.replica_rps - ROUNDING))
    aim, before = needed + spare, pool.replicas
    calm, why = 0, list(now.why)
    replicas = before
    if aim > before:
        replicas = min(aim, before + max(1, int(before * limits.growth_share)))
        why.append(f"{busy_rps:.3g} requests/s need {needed}" + (", grown step by step" if replicas < aim else ""))
    elif aim < before:
        calm = observed.calm.get(name, 0) + 1
        fewer = before - 1
        most_rps = (fewer - spare) * now.replica_rps * (1 - _margin(observed, limits))
        if calm >= limits.patience_windows and busy_rps <= most_rps and fewer >= limits.least_replicas:
            replicas, calm = fewer, 0
            why.append(f"{needed} would do for {limits.patience_windows} windows: one less")
    return _Wanted(
        name=name,
        pool=pool,
        replica_rps=now.replica_rps,
        needed=needed,
        spare=spare,
        replicas=replicas,
        calm=min(calm, limits.patience_windows),
        why=tuple(why),
    )


def _margin(observed: Observed, limits: ReplanLimits) -> float:
    """The share of the capacity that must stay free after a pool shrank, so that chance does not make it grow again."""
    requests = max(1.0, observed.rate_rps * observed.window_s)
    return min(0.5, max(limits.spare_share, NOISE_SIGMAS / sqrt(requests)))


def _within(wanted: list[_Wanted], limits: ReplanLimits) -> list[_Wanted]:
    """As few replicas as GPUs and dollars allow, taken one by one from the pool that has most beyond its need."""
    settled = list(wanted)
    for what, most, size in _budgets(limits):
        while sum(size(one) * one.replicas for one in settled) > most + ROUNDING:
            able = [at for at, one in enumerate(settled) if one.replicas > limits.least_replicas]
            if not able:
                break
            at = max(able, key=lambda n: (settled[n].replicas / settled[n].needed, settled[n].name))
            settled[at] = settled[at].times(settled[at].replicas - 1, f"{what} allows no more")
    return settled


def _budgets(limits: ReplanLimits) -> Iterator[tuple[str, float, _Size]]:
    if limits.most_gpus is not None:
        yield "most_gpus", float(limits.most_gpus), lambda one: one.pool.devices_per_replica
    if limits.most_usd_per_hour is not None:
        yield "most_usd_per_hour", limits.most_usd_per_hour, lambda one: one.usd_per_hour


def _of_pool(one: _Wanted, observed: Observed, busy_rps: float) -> PoolReplan:
    here = observed.pools[one.name]
    why = list(dict.fromkeys(one.why))
    if here.leaving:
        why.append(f"{here.leaving} of {here.ready} are about to leave")
    return PoolReplan(
        replicas=one.replicas,
        before=one.pool.replicas,
        needed=one.needed,
        start=max(0, one.replicas - here.staying),
        replica_rps=one.replica_rps,
        load=busy_rps / (one.replicas * one.replica_rps),
        why="; ".join(why) or "as planned",
    )


def _rewritten(plan: Plan, settled: list[_Wanted], observed: Observed) -> Plan:
    """The plan with new counts, what is believed of capacities, and the lengths that they belong to."""
    pools = {one.name: _counted(one, leaving=observed.pools[one.name].leaving > 0) for one in settled}
    traffic = plan.traffic
    now = traffic.model_copy(
        update={
            "isl": _lengths(traffic.isl, observed.isl_mean),
            "osl": _lengths(traffic.osl, observed.osl_mean),
        }
    )
    costs = [pool.cost for pool in pools.values()]
    warnings = plan.warnings if WARNING in plan.warnings else (*plan.warnings, WARNING)
    return plan.model_copy(
        update={
            "pools": pools,
            "traffic": TrafficPlan.model_validate(now.model_dump()),
            "cost": Cost(**{name: sum(getattr(cost, name) for cost in costs) for name in Cost.model_fields}),
            "warnings": warnings,
        }
    )


def _lengths(planned: LengthSummary, mean: float | None) -> LengthSummary:
    return planned if mean is None else LengthSummary(mean=mean, cv=planned.cv)


def _counted(one: _Wanted, *, leaving: bool) -> PoolPlan:
    """The pool with so many replicas, spot in the share planned; while spot is being taken away, none is added.

    Dollars follow the count, as if the shares stayed.
    """
    pool, replicas = one.pool, one.replicas
    spot = min(replicas, round(replicas * pool.spot / pool.replicas))
    if leaving:
        spot = min(spot, pool.spot)
    factor = replicas / pool.replicas
    cost = Cost(**{name: getattr(pool.cost, name) * factor for name in Cost.model_fields})
    # Not the need of the moment: the headroom is what must survive until the next call.
    needed = max(1, replicas - one.spare)
    counts = {"replicas": replicas, "needed": needed, "spot": spot, "on_demand": replicas - spot}
    return pool.model_copy(update={**counts, "replica_rps": one.replica_rps, "cost": cost})
