"""The question to the search: a model, a promise, its traffic, and what may be rented."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from planner.devices import Device
from planner.footprint import Footprint
from planner.models import ModelShape
from planner.perf.calibration import Calibration
from planner.prices import Prices
from planner.slo import Slo
from planner.spot import Notice, SpotMarket
from planner.types import PlannerError
from planner.workload import Workload

SAFE_PROBABILITY = 0.9
# Chance that spot leaves too few replicas.
SPOT_EPSILON = 0.001


@dataclass(frozen=True, kw_only=True)
class SpotTerms:
    """Spot is allowed, in this market, with this notice. `name` is the market's, for people.

    `epsilon`: the accepted chance that too few replicas are up. `warm_up_s` of a replacement; None is estimated
    from the bytes to load. `least_on_demand`: replicas of each pool that must not be spot.
    """

    name: str
    market: SpotMarket
    notice: Notice
    epsilon: float = SPOT_EPSILON
    warm_up_s: float | None = None
    least_on_demand: int = 0


@dataclass(frozen=True, kw_only=True)
class Space:
    """What the search may turn. Tuples hold the values to try; an empty one means the planner's own choice.

    `quants` are storage formats of weights, None the checkpoint's own; `tensor_degrees` and `pipeline_degrees` are
    filtered by what the model and the node allow; `fractions` such as `1g.10gb` or `1/4` are tried where they exist.
    """

    tensor_degrees: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_degrees: tuple[int, ...] = (1, 2)
    expert_parallel: bool = True
    quants: tuple[str | None, ...] = ()
    kv_dtypes: tuple[str, ...] = ()
    budgets_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192)
    max_num_seqs: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    mixed: bool = True
    disaggregated: bool = True
    fractions: bool = True


@dataclass(frozen=True, kw_only=True)
class PlanQuestion:
    """Everything that an answer depends on; equal questions have equal answers.

    `model` is the name to deploy (a folder, hub id or built-in name). With `maximise_rate` the rates of the workload
    are only its mix: the answer is the highest rate that `total_gpus` bear. `confidence` is the least P(SLO met) that
    any answer may have; None accepts what the point estimate and the simulation say.
    """

    model: str
    shape: ModelShape
    slo: Slo
    workload: Workload
    devices: tuple[Device, ...]
    prices: Prices
    calibration: Calibration
    space: Space = field(default_factory=Space)
    spot: SpotTerms | None = None
    total_gpus: int | None = None
    most_usd_per_hour: float | None = None
    maximise_rate: bool = False
    confidence: float | None = None
    safe_probability: float = SAFE_PROBABILITY
    provider: str = ""
    region: str = ""
    exact_weight_bytes: int | None = None
    footprint: Footprint | None = None
    max_model_len_tokens: int | None = None
    gpu_memory_utilization: float = 0.92
    verify_top: int = 8
    most_requests: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, odd, remedy in (
            ("devices", self.devices, not self.devices, "name at least one device"),
            ("total_gpus", self.total_gpus, self.total_gpus is not None and self.total_gpus < 1, "allow 1 or more"),
            ("total_gpus", self.total_gpus, self.maximise_rate and self.total_gpus is None, "say how many GPUs"),
            ("most_usd_per_hour", self.most_usd_per_hour, _not_above_zero(self.most_usd_per_hour), "give dollars"),
            ("confidence", self.confidence, not 0 <= (self.confidence or 0.0) < 1, "give a share below 1"),
            ("safe_probability", self.safe_probability, not 0 < self.safe_probability < 1, "give a share below 1"),
            ("verify_top", self.verify_top, self.verify_top < 1, "verify at least one candidate"),
            ("most_requests", self.most_requests, self.most_requests < 1_000, "simulate at least 1,000 requests"),
        ):
            if odd:
                raise PlannerError("settings", key, value, "no plan can be made of it", remedy)


def _not_above_zero(value: float | None) -> bool:
    return value is not None and not (isfinite(value) and value > 0)
