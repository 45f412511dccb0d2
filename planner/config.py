"""config.json -> ModelShape: reads every family's spelling of the same few facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

from planner.families import FAMILIES, LLAMA, Family
from planner.models import ATTENTION, STATE, Experts, Layer, Mixer, Mla, Mlp, ModelShape, State
from planner.quantisation import Quantisation, from_config, quantisation
from planner.types import PlannerError, dtype_bytes
