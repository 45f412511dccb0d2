"""A fleet that was tried and staffed, written as a Plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.memory import CPU_BLOCK_SIZE_TOKENS
from planner.plan import (
    Attainment,
    Cost,
    EnginePlan,
    LengthSummary,
    Plan,
    PoolCosts,
    PoolPlan,
    Prediction,
    TrafficPlan,
    TransferPlan,
)
from planner.queueing.costs import Floats
from planner.search.binding import binding, time_text
from planner.search.closed import Prepared
from planner.search.designs import BLOCK_TOKENS
from planner.search.fleets import Fleet, Pool
from planner.search.spot_terms import Staffing
from planner.search.traffic import Traffic
from planner.search.trial import Trial
from planner.types import GIB

__all__ = ["Attainment", "Chosen", "write"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A fleet with all that was found out about it. `probability` is over step times alone.

    `enlarged`: it has more replicas than the fleet that was tried, so it holds, but is quicker than the trial says.
    """

    fleet: Fleet
    staffing: tuple[Staffing, ...]
    trial: Trial
    probability: float
    enlarged: bool = False

    @property
    def usd_per_hour(self) -> float:
        return sum(one.cost.expected_usd_per_hour for one in self.staffing)

    @property
    def gpus(self) -> int:
        total = sum(one.replicas * pool.replica_gpus for one, pool in zip(self.staffing, self.fleet.pools, strict=True))
        return -int(-total // 1)

    @property
    def sure(self) -> float:
        """P(SLO met): step times and spot."""
        held = 1.0
        for one in self.staffing:
            held *= one.probability
        return self.probability * held


def write(chosen: Chosen, prepared: Prepared, traffic: Traffic) -> Plan:
    """The document."""
    fleet = chosen.fleet
    base = prepared.forms.bases[prepared.forms.pairs[int(fleet.pools[-1].designs.pair[fleet.pools[-1].row])].base]
    pools: dict[str, PoolPlan] = {
        pool.designs.role: _pool_plan(pool, staffed, prepared, traffic)
        for pool, staffed in zip(fleet.pools, chosen.staffing, strict=True)
    }
    why = [
        f"{pool.designs.role}: {pools[pool.designs.role].limit}; {time_text(prepared.machines, pool, traffic)}"
        for pool in fleet.pools
    ]
    if fleet.disaggregated:
        sent = _transfer(fleet, traffic)
        gb = 1e-9 * sent.bytes_per_token * float(traffic.lengths.prompt_tokens.mean())
        why.append(f"KV from prefill to decode: {gb:.2f} GB of a mean prompt in {sent.mean_ms:.1f} ms")
    return Plan(
        model=prepared.question.model,
        slo=traffic.slo,
        traffic=_traffic_plan(traffic),
        pools=pools,
        transfer=_transfer(fleet, traffic) if fleet.disaggregated else None,
        cost=_sum([staffed.cost for staffed in chosen.staffing]),
        prediction=Prediction(
            method="simulated",
            rung=base.rung,
            tpot_sigma=base.sigma.tpot,
            ttft_sigma=base.sigma.ttft,
            requests=chosen.trial.requests,
            probability=chosen.sure,
            classes=dict(chosen.trial.classes),
        ),
        why=tuple(why),
        warnings=tuple(_warnings(chosen, prepared)),
    )


def _pool_plan(pool: Pool, staffed: Staffing, prepared: Prepared, traffic: Traffic) -> PoolPlan:
    designs, row, form = pool.designs, pool.row, pool.form
    question = prepared.question
    costs = designs.costs.row(row)
    weights_bytes = stage_weights(prepared, pool)
    # vLLM's attention on CPU takes no blocks of 16, in which designs count.
    block_tokens = CPU_BLOCK_SIZE_TOKENS if pool.device.kind == "cpu" else BLOCK_TOKENS
    return PoolPlan(
        role=designs.role,
        device=pool.device.name,
        devices_per_replica=pool.replica_gpus,
        replicas=staffed.replicas,
        needed=staffed.needed,
        on_demand=staffed.on_demand,
        spot=staffed.spot,
        weights=form.stored.name,
        checkpoint=None if form.quant is None or form.packs_on_load else f"{question.model} stored as {form.quant}",
        engine=EnginePlan(
            tensor_parallel_size=form.layout.tp,
            pipeline_parallel_size=form.layout.pp,
            data_parallel_size=form.layout.dp,
            enable_expert_parallel=form.layout.ep > 1,
            quantization=form.quant if form.packs_on_load else None,
            kv_cache_dtype=form.kv_dtype,
            max_model_len=prepared.max_len,
            max_num_seqs=int(designs.seqs[row]),
            max_num_batched_tokens=int(designs.budget[row]),
            block_size=block_tokens,
            num_gpu_blocks_override=int(designs.blocks[row]) * BLOCK_TOKENS // block_tokens,
            gpu_memory_utilization=question.gpu_memory_utilization,
        ),
        replica_rps=pool.replica_rps,
        kv_tokens=int(designs.kv_tokens[row]),
        weights_gib=weights_bytes / GIB,
        limit=binding(pool, traffic).text,
        costs=PoolCosts(
            step_s=float(costs.step_s),
            prefill_token_s=float(costs.prefill_token_s),
            prefill_square_s=float(costs.prefill_square_s),
            sequence_s=float(costs.sequence_s),
            kv_token_s=float(costs.kv_token_s),
            overhead_s=float(costs.overhead_s),
        ),
        cost=staffed.cost,
        spot_terms=staffed.terms,
    )


def _transfer(fleet: Fleet, traffic: Traffic) -> TransferPlan:
    """As the decode pool's closed form and the simulation count it."""
    designs, row = fleet.pools[-1].designs, fleet.pools[-1].row
    start_s, token_s = float(designs.transfer_s[row]), float(designs.transfer_token_s[row])
    return TransferPlan(
        bytes_per_token=float(designs.kv_token_bytes[row]),
        start_s=start_s,
        token_s=token_s,
        mean_ms=1e3 * (start_s + token_s * float(traffic.lengths.prompt_tokens.mean())),
    )


def stage_weights(prepared: Prepared, pool: Pool) -> int:
    """Bytes of weights on a device of the fullest stage."""
    question, layout = prepared.question, pool.form.layout
    stored = pool.form.stored_shape(question.shape)
    return stored.weight_bytes(exact_bytes=question.exact_weight_bytes, tp=layout.tp, pp=layout.pp, ep=layout.ep)


def _traffic_plan(traffic: Traffic) -> TrafficPlan:
    lengths = traffic.lengths
    return TrafficPlan(
        rate_rps=traffic.rate_rps,
        busy_rate_rps=traffic.busy_rate_rps,
        isl=_summary(lengths.prompt_tokens),
        osl=_summary(lengths.output_tokens),
        arrival_cv=traffic.arrival_scv**0.5,
        prefix_share=float(lengths.cached_tokens.sum() / lengths.prompt_tokens.sum()),
    )


def _summary(tokens: Floats) -> LengthSummary:
    mean = float(np.mean(tokens))
    return LengthSummary(mean=mean, cv=float(np.std(tokens)) / mean)


def _sum(costs: list[Cost]) -> Cost:
    return Cost(**{name: sum(getattr(cost, name) for cost in costs) for name in Cost.model_fields})


def _warnings(chosen: Chosen, prepared: Prepared) -> list[str]:
    forms = [pool.form for pool in chosen.fleet.pools]
    found = list(prepared.question.shape.assumptions)
    if any(form.packs_on_load for form in forms):
        found.append("weights are packed to fp8 while they load: check the answers' quality, or ask for quant none")
    if any(form.kv_dtype != "auto" for form in forms):
        found.append("the KV cache is stored in fp8: check the answers' quality, or ask for KV auto")
    if not chosen.trial.clear:
        found.append("the simulation is too close to call: more requests might decide otherwise")
    for pool in chosen.fleet.pools:
        tp = pool.form.layout.tp
        if tp >= 4 and not pool.device.has_scale_up:
            found.append(f"tensor parallelism {tp} over PCIe on {pool.device.name}: prefill waits for the bus")
        if tp > prepared.question.shape.num_kv_heads and prepared.question.shape.mla is None:
            found.append(f"tensor parallelism {tp} exceeds the KV heads, so parts of the cache are kept twice")
    return list(dict.fromkeys(found))
