"""A small plan, as the search would make it, for tests of what reads plans."""

from __future__ import annotations

from planner.plan import (
    Attainment,
    ClassPrediction,
    Cost,
    EnginePlan,
    LengthSummary,
    Plan,
    PoolCosts,
    PoolPlan,
    Prediction,
    Quantiles,
    Role,
    TrafficPlan,
)
from planner.slo import slo_from

COST = Cost(usd_per_hour=4.0, expected_usd_per_hour=4.0, low_usd_per_hour=3.5, high_usd_per_hour=6.0)
COSTS = PoolCosts(
    step_s=0.011, prefill_token_s=60e-6, prefill_square_s=0, sequence_s=15e-6, kv_token_s=24e-9, overhead_s=0.05
)


def pool(role: Role = "mixed", *, replicas: int = 2, replica_rps: float = 2.0, spot: int = 0) -> PoolPlan:
    return PoolPlan(
        role=role,
        device="h100_sxm",
        devices_per_replica=2,
        replicas=replicas,
        needed=replicas,
        on_demand=replicas - spot,
        spot=spot,
        weights="fp8",
        engine=EnginePlan(
            tensor_parallel_size=2,
            quantization="fp8",
            max_model_len=8192,
            max_num_seqs=128,
            max_num_batched_tokens=2048,
            block_size=16,
            num_gpu_blocks_override=20_000,
            gpu_memory_utilization=0.92,
        ),
        replica_rps=replica_rps,
        kv_tokens=319_984,
        weights_gib=35.0,
        limit="TPOT of chat",
        costs=COSTS,
        cost=COST,
    )


def plan(*pools: PoolPlan, rate_rps: float = 4.0) -> Plan:
    chosen = pools or (pool(),)
    quantiles = Quantiles(p50=100, p90=200, p99=400)
    return Plan(
        model="a/model",
        slo=slo_from({"classes": {"chat": {"ttft_ms": {"limit": 1000, "p50": 200}, "tpot_ms": 50}}}),
        traffic=TrafficPlan(
            rate_rps=rate_rps,
            busy_rate_rps=rate_rps,
            isl=LengthSummary(mean=500, cv=1),
            osl=LengthSummary(mean=250, cv=1),
        ),
        pools={one.role: one for one in chosen},
        cost=COST,
        prediction=Prediction(
            method="closed form",
            rung="other devices",
            tpot_sigma=0.2,
            ttft_sigma=0.4,
            probability=0.7,
            classes={
                "chat": ClassPrediction(
                    ttft_ms=quantiles,
                    tpot_ms=quantiles,
                    e2e_ms=quantiles,
                    attainment=Attainment(value=0.995, low=0.99, high=1, required=0.99),
                    met=True,
                )
            },
        ),
    )
