"""The few numbers of the model that measurements decide, with what is believed before any measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from planner.perf.arrays import Array, Table


@dataclass(frozen=True, kw_only=True)
class Coefficients(Table):
    """One row per configuration. Those without a unit multiply the reach of the device (`planner.perf.chip`)."""

    memory: Array  # streaming dense weights
    experts: Array  # streaming expert weights
    expert_products: Array  # matrix products of experts, each over few tokens
    kv: Array  # streaming the KV cache
    products: Array  # matrix products of a prefill
    attention: Array  # attention of a prefill
    link: Array  # share of the sheet bandwidth that an all-reduce of a prefill reaches
    layer_s: Array  # kernels of one layer that wait for each other
    packed_layer_s: Array  # more of them where activations must be packed too
    moe_layer_s: Array  # routing, sorting and joining in an expert layer
    reduce_s: Array  # one small all-reduce
    sequence_s: Array  # scheduling, sampling and detokenising of one sequence, per step
    step_s: Array  # the same of one step
    launch_layer_s: Array  # least time of a layer in a step with prefill, which no CUDA graph replays
    request_s: Array  # HTTP, tokeniser and first answer, once per request
    prompt_token_s: Array  # the same per prompt token
    admit_s: Array  # the front end's time per request, which those that come at once wait for in turn
    burst: Array  # mean place in the opening burst, as a share of its size
    bunching: Array  # how far requests of one length stay together, as a share of the worst


@dataclass(frozen=True)
class Belief:
    """A value, and by what factor (one sigma, natural log) it may be wrong before measurement."""

    value: float
    sigma: float


BELIEFS: Mapping[str, Belief] = MappingProxyType(
    {
        "memory": Belief(1.0, 0.1),
        "experts": Belief(1.0, 0.15),
        "expert_products": Belief(0.3, 0.3),
        "kv": Belief(0.92, 0.12),
        "products": Belief(1.0, 0.1),
        "attention": Belief(1.0, 0.15),
        "link": Belief(0.4, 0.4),
        "layer_s": Belief(28e-6, 0.4),
        "packed_layer_s": Belief(8e-6, 0.5),
        "moe_layer_s": Belief(30e-6, 0.4),
        "reduce_s": Belief(9e-6, 0.4),
        "sequence_s": Belief(15e-6, 0.5),
        "step_s": Belief(0.7e-3, 0.6),
        "launch_layer_s": Belief(0.25e-3, 0.6),
        "request_s": Belief(40e-3, 0.4),
        "prompt_token_s": Belief(4e-6, 0.7),
        "admit_s": Belief(3e-3, 0.5),
        "burst": Belief(0.75, 0.25),
        "bunching": Belief(1.0, 0.3),
    }
)
NAMES = tuple(BELIEFS)


def beliefs() -> dict[str, float]:
    """What holds before any measurement."""
    return {name: belief.value for name, belief in BELIEFS.items()}


def rows_of(values: Mapping[str, float], count: int) -> Coefficients:
    """The same coefficients for `count` configurations."""
    return Coefficients(**{name: np.full(count, values[name]) for name in NAMES})
