"""What was learnt from measurements: base coefficients, and corrections for a device and for one deployment.

A correction is a factor on time per knob. Knobs are few, so that six measured points can turn them; a correction that
nothing was measured for is 1. Narrower ones are multiplied upon wider ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from types import MappingProxyType
from typing import Literal

import numpy as np

from planner.perf.coefficients import NAMES, Coefficients, beliefs
from planner.perf.question import Question

Rung = Literal["measured here", "other models on this device", "other devices", "data sheet only"]

# Which coefficients a knob turns, and whether a longer time means more of it or less.
KNOBS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "decode": {
            "memory": -1, "experts": -1, "layer_s": 1, "packed_layer_s": 1, "moe_layer_s": 1, "step_s": 1,
            "reduce_s": 1,
        },
        "kv": {"kv": -1},
        "prefill": {"products": -1, "attention": -1, "expert_products": -1, "launch_layer_s": 1, "link": -1},
        "sequence": {"sequence_s": 1},
        "request": {"request_s": 1, "prompt_token_s": 1},
    }
)  # fmt: skip

# Kernels of a layer launched one by one: some fifteen, at 5 to 10 µs each.
EAGER = 5.0

Correction = Mapping[str, float]  # knob -> natural log of the factor on time


@dataclass(frozen=True, kw_only=True)
class Sigma:
    """Relative error to expect (one sigma), of TPOT and TTFT."""

    tpot: float
    ttft: float


# Before the accuracy harness says better; see `coefficients.yaml`.
GUESSED_SIGMAS: Mapping[Rung, Sigma] = MappingProxyType(
    {
        "measured here": Sigma(tpot=0.10, ttft=0.25),
        "other models on this device": Sigma(tpot=0.15, ttft=0.35),
        "other devices": Sigma(tpot=0.20, ttft=0.45),
        "data sheet only": Sigma(tpot=0.30, ttft=0.60),
    }
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Frozen; `calibrate` makes new ones. Keys: device name, and `deployment_key`."""

    base: Mapping[str, float] = field(default_factory=beliefs)
    devices: Mapping[str, Correction] = field(default_factory=dict)
    deployments: Mapping[str, Correction] = field(default_factory=dict)
    sigmas: Mapping[Rung, Sigma] = field(default_factory=lambda: GUESSED_SIGMAS)
    own_sigmas: Mapping[str, Sigma] = field(default_factory=dict)  # of deployments that were profiled

    def coefficients(self, questions: Sequence[Question]) -> Coefficients:
        """One row per question."""
        columns = {name: np.full(len(questions), self.base[name]) for name in NAMES}
        for row, question in enumerate(questions):
            for correction in self.corrections(question):
                for knob, log_factor in correction.items():
                    for name, sign in KNOBS[knob].items():
                        columns[name][row] *= exp(sign * log_factor)
            if question.eager:
                columns["layer_s"][row] *= EAGER
        return Coefficients(**columns)

    def corrections(self, question: Question) -> list[Correction]:
        """Those that apply to the question, widest first."""
        levels = (
            (self.devices, question.device.whole),
            (self.deployments, deployment_key(question)),
        )
        return [level[key] for level, key in levels if key in level]

    def sigma(self, question: Question) -> Sigma:
        """The error bar of an estimate: its deployment's own, else that of its rung."""
        return self.own_sigmas.get(deployment_key(question)) or self.sigmas[self.rung(question)]

    def rung(self, question: Question) -> Rung:
        """Where the estimate's numbers come from, the best first."""
        if deployment_key(question) in self.deployments:
            return "measured here"
        if question.device.whole in self.devices:
            return "other models on this device"
        return "other devices" if question.chip().measured[0] else "data sheet only"


def deployment_key(question: Question) -> str:
    """What one set of measured points stands for: a model in a format on a device under an engine."""
    return "|".join((question.shape.name, question.device.whole, question.stored.name, question.engine))
