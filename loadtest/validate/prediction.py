"""What a plan predicts for one of its classes, and what the performance model says of other rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.cost import Rent
from loadtest.types import LoadTestError
from planner import Estimate, Percentiles, Plan, PlannerError, PoolPlan, estimate

SHARES = ("p50", "p90", "p99")


@dataclass(frozen=True, slots=True)
class Predicted:
    """Milliseconds by percentile. None where the source says nothing; then `why_not` says why."""

    source: str
    ttft_ms: Mapping[str, float] | None = None
    tpot_ms: Mapping[str, float] | None = None
    e2e_ms: Mapping[str, float] | None = None
    attainment: float | None = None
    out_tok_s: float | None = None
    why_not: str = ""


def class_of(plan: Plan, name: str) -> str:
    """The class that one plain load stands for. Raises LoadTestError where that is not plain."""
    names = sorted(plan.slo.classes)
    if name:
        if name not in names:
            raise LoadTestError(f"the plan has no class {name!r}; it has {', '.join(names)}")
        return name
    if len(names) > 1:
        raise LoadTestError(f"the plan promises to {', '.join(names)}: say with --slo-class which of them the load is")
    return names[0]


def rent_of_plan(plan: Plan, file: str) -> Rent:
    """What the plan expects to pay: spot that is away costs nothing."""
    return Rent(plan.cost.expected_usd_per_hour, f"expected by {file}")


def of_plan(plan: Plan, slo_class: str) -> Predicted:
    """What the plan itself says, of its own rate."""
    told = plan.prediction.classes.get(slo_class)
    if told is None:
        return Predicted("plan", why_not=f"the plan predicts nothing of {slo_class}")
    quantiles = {"ttft_ms": told.ttft_ms, "tpot_ms": told.tpot_ms, "e2e_ms": told.e2e_ms}
    spreads = {
        name: {s: float(getattr(some, s)) for s in SHARES} for name, some in quantiles.items() if some is not None
    }
    return Predicted(
        source=f"plan, {plan.prediction.method}",
        ttft_ms=spreads.get("ttft_ms"),
        tpot_ms=spreads.get("tpot_ms"),
        e2e_ms=spreads.get("e2e_ms"),
        attainment=told.attainment.value,
    )


def of_model(plan: Plan, rate_rps: float, isl: float, osl: float) -> Predicted:
    """What the performance model says of the plan's one pool at this rate and at these lengths."""
    source = "performance model"
    if len(plan.pools) != 1:
        return Predicted(source, why_not="it has several pools, which one estimate does not cover")
    (pool,) = plan.pools.values()
    try:
        found = _estimate(plan.model, pool, rate_rps, isl, osl)
    except PlannerError as error:
        return Predicted(source, why_not=f"{error}; {error.remedy}")
    if found.ttft.p50_ms == float("inf"):
        return Predicted(source, why_not=found.limit)
    return Predicted(source, _shares(found.ttft), _shares(found.tpot), out_tok_s=found.out_tok_s)


def _estimate(model: str, pool: PoolPlan, rate_rps: float, isl: float, osl: float) -> Estimate:
    engine = pool.engine
    return estimate(
        model,
        pool.device,
        isl=isl,
        osl=osl,
        request_rate=rate_rps,
        tp=engine.tensor_parallel_size,
        pp=engine.pipeline_parallel_size,
        dp=engine.data_parallel_size,
        replicas=pool.replicas,
        quant=pool.weights,
        kv_cache_dtype=None if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
    )


def _shares(found: Percentiles) -> dict[str, float]:
    return {"p50": found.p50_ms, "p90": found.p90_ms, "p99": found.p99_ms}
