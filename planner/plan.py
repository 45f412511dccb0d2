"""plan.yaml: what to run, in full, and what is promised of it. `serving` deploys it, `replan` changes its counts.

Times are in milliseconds where people read them and in seconds (`_s`) inside `costs`; money in US dollars per hour.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from planner.documents import Document, Row, refuse, validated
from planner.queueing import EngineRules, StepCosts
from planner.slo import Slo

PLAN_VERSION: Literal[1] = 1

Role = Literal["prefill", "decode", "mixed"]
Share = Annotated[float, Field(ge=0, le=1)]

# Names of vLLM's arguments that are switches of their own on its command line, or that need no word.
UNSAID = {"dtype": "auto", "data_parallel_size": 1, "pipeline_parallel_size": 1, "enable_expert_parallel": False}


class Cost(Document):
    """US dollars per hour. `usd_per_hour` pays for every replica; spot that is away costs nothing, so `expected` is
    less. The interval spans the prices asked, and nine hours in ten of the number of spot replicas that are up."""

    usd_per_hour: NonNegativeFloat
    expected_usd_per_hour: NonNegativeFloat
    low_usd_per_hour: NonNegativeFloat
    high_usd_per_hour: NonNegativeFloat


class Quantiles(Document):
    """Milliseconds."""

    p50: NonNegativeFloat
    p90: NonNegativeFloat
    p99: NonNegativeFloat


class Attainment(Document):
    """The share of a class's requests that meet every limit, with its 95 % interval, and the share that must."""

    value: Share
    low: Share
    high: Share
    required: Share


class ClassPrediction(Document):
    """What one SLO class will see. `tpot_ms` is missing where answers have one token."""

    ttft_ms: Quantiles
    tpot_ms: Quantiles | None = None
    e2e_ms: Quantiles
    attainment: Attainment
    met: bool


class Prediction(Document):
    """`rung` says where the step times come from, the sigmas how far they may be off (relative, one sigma).

    `probability` is P(SLO met): over the errors of the step times, and over which spot replicas are up.
    """

    method: Literal["simulated", "closed form"]
    rung: str
    tpot_sigma: NonNegativeFloat
    ttft_sigma: NonNegativeFloat
    requests: NonNegativeInt = 0  # simulated
    probability: Share
    classes: dict[str, ClassPrediction]


class EnginePlan(Document):
    """One engine, in the names of vLLM's own arguments. `quantization` is for weights packed while they load."""

    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    enable_expert_parallel: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: PositiveInt
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt
    num_gpu_blocks_override: PositiveInt
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    enable_prefix_caching: bool = True

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments that must be said, by their Python names; defaults of vLLM that we keep are left out."""
        given: dict[str, object] = self.model_dump(exclude_none=True)
        return {name: value for name, value in given.items() if UNSAID.get(name) != value}

    @property
    def flags(self) -> tuple[str, ...]:
        """The same as flags of `vllm serve`."""
        words: list[str] = []
        for name, value in self.arguments.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return tuple(words)


class PoolCosts(Document):
    """What a step costs on one engine, for the simulator and for `replan`: see `planner.queueing.costs`."""

    step_s: PositiveFloat
    prefill_token_s: NonNegativeFloat
    prefill_square_s: NonNegativeFloat
    sequence_s: NonNegativeFloat
    kv_token_s: NonNegativeFloat
    overhead_s: NonNegativeFloat

    @property
    def step_costs(self) -> StepCosts:
        return StepCosts(**self.model_dump())


class NoticeEffect(Document):
    """What a notice of `lead_s` seconds allows when one event takes `lost` replicas of a pool.

    `spare_replicas` of headroom hold the SLO until replacements are warm; without them `misses` requests miss it.
    """

    lead_s: NonNegativeFloat
    lost: NonNegativeInt
    moved_share: Share
    replayed_tokens: NonNegativeFloat
    spare_replicas: NonNegativeInt
    misses: NonNegativeFloat
    usd_per_hour: NonNegativeFloat  # of the pool with just that headroom


class SpotPlan(Document):
    """Spot in a pool. `probability`: that `needed` replicas are up. `warm_up_s`: of a replacement."""

    market: str
    availability: Share
    lead_s: NonNegativeFloat
    missed_notices: Share
    probability: Share
    spare_replicas: NonNegativeInt
    warm_up_s: NonNegativeFloat
    notices: Row[NoticeEffect] = ()


class PoolPlan(Document):
    """Equal replicas of one engine. `needed` must be up to hold the SLO; `replicas` = `on_demand` + `spot`.

    `replica_rps` is the highest rate of the planned traffic at which one replica holds the SLO.
    """

    role: Role
    device: str
    devices_per_replica: PositiveFloat  # below 1 for fractions of a device
    replicas: PositiveInt
    needed: PositiveInt
    on_demand: NonNegativeInt
    spot: NonNegativeInt = 0
    weights: str  # storage format
    checkpoint: str | None = None  # what to fetch or make, where the model as named is not stored like that
    engine: EnginePlan
    replica_rps: PositiveFloat
    kv_tokens: PositiveInt  # in the cache of one engine
    weights_gib: NonNegativeFloat  # on one device
    limit: str  # what keeps a replica from more, in words
    costs: PoolCosts
    cost: Cost
    spot_terms: SpotPlan | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.replicas != self.on_demand + self.spot:
            remedy = "make replicas the sum of on_demand and spot"
            refuse("replicas", self.replicas, f"on_demand + spot is {self.on_demand + self.spot}", remedy)
        if self.needed > self.replicas:
            refuse(
                "needed", self.needed, f"only {self.replicas} replicas are planned", "raise replicas or lower needed"
            )
        return self

    @property
    def devices(self) -> float:
        """Whole devices; a part of one where replicas are fractions."""
        return self.replicas * self.devices_per_replica

    @property
    def rules(self) -> EngineRules:
        """vLLM's limits of one engine, for the simulator and for `replan`."""
        return EngineRules(
            max_num_batched_tokens=self.engine.max_num_batched_tokens,
            max_num_seqs=self.engine.max_num_seqs,
            kv_blocks=max(1, self.kv_tokens // self.engine.block_size),
            block_size_tokens=self.engine.block_size,
        )


class LengthSummary(Document):
    """Tokens; `cv` = standard deviation / mean."""

    mean: PositiveFloat
    cv: NonNegativeFloat = 0.0


class TrafficPlan(Document):
    """The traffic planned for. `busy_rate_rps` is the rate of the busy stretches, which the plan must hold."""

    rate_rps: PositiveFloat
    busy_rate_rps: PositiveFloat
    isl: LengthSummary
    osl: LengthSummary
    arrival_cv: NonNegativeFloat = 1.0
    prefix_share: Share = 0.0  # of prompt tokens, found in the prefix cache


class Plan(Document):
    """A plan.yaml."""

    plan_version: Literal[1] = PLAN_VERSION
    model: str
    slo: Slo
    traffic: TrafficPlan
    pools: Annotated[dict[str, PoolPlan], Field(min_length=1)]
    cost: Cost
    prediction: Prediction
    why: Row[str] = ()  # the limits that bind, phase by phase, in words
    warnings: Row[str] = ()

    @model_validator(mode="after")
    def _roles_can_serve(self) -> Self:
        roles = sorted(pool.role for pool in self.pools.values())
        if not set(roles) & {"decode", "mixed"}:
            refuse("pools", roles, "no pool can decode", "add a pool with role decode or mixed")
        return self

    @property
    def devices(self) -> float:
        """Whole devices of all pools; a part of one where replicas are fractions."""
        return sum(pool.devices for pool in self.pools.values())

    @property
    def gpus(self) -> int:
        """Whole devices to rent."""
        return -int(-self.devices // 1)

    @property
    def disaggregated(self) -> bool:
        return any(pool.role == "prefill" for pool in self.pools.values())

    def document(self) -> dict[str, object]:
        """What `plan_from` reads back, as plain mappings for YAML or JSON."""
        return self.model_dump(mode="json", exclude_none=True)


def plan_from(data: object, *, file: str = "plan.yaml") -> Plan:
    """The plan in parsed YAML. Raises PlannerError for unknown keys, missing ones and counts that contradict."""
    return validated(Plan, data, file=file)
