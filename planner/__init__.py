"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import.
"""

from planner.config import shape_from_config
from planner.context_lengths import ContextLengths, context_lengths
from planner.devices import Device, Devices, Figure, devices_from
from planner.engine import Engine
from planner.evacuation import Evacuation
from planner.files import (
    device,
    folder_weight_bytes,
    read_devices,
    read_json_object,
    read_plan,
    read_prices,
    read_shape,
    read_slo,
    read_spot_markets,
    read_trace,
    read_workload,
    read_yaml_object,
    weight_files,
    write_plan,
)
from planner.fit import Degree, degrees, gpu_memory_report
from planner.footprint import Footprint
from planner.gpu_memory import GpuMemoryReport
from planner.kv_blocks import KvCapacity, KvLayout, kv_layout
from planner.library import PublicModel, public_models, shape_of_model
from planner.memory import MemoryReport, memory_report
from planner.models import Experts, Layer, Mla, ModelShape, State
from planner.perf.calibration import Calibration
from planner.perf.estimate import Estimate, Percentiles, estimate, estimate_rows
from planner.perf.shipped import shipped_calibration
from planner.plan import EnginePlan, Plan, PoolPlan, plan_from
from planner.prices import Offer, Price, Prices, prices_from
from planner.quantisation import Quantisation, quantisation
from planner.search import (
    Answer,
    Candidate,
    Change,
    Infeasible,
    Nearest,
    NearestSlo,
    PlanQuestion,
    Point,
    Skipped,
    Space,
    SpotTerms,
    plan_for,
)
from planner.slo import Latency, Slo, SloClass, Target, slo_from
from planner.spot import (
    Notice,
    SpotMarket,
    SpotMarkets,
    SpotMix,
    cheapest_mix,
    holds_probability,
    mix_of,
    spot_markets_from,
    spot_needed,
    up_probabilities,
)
from planner.traces import Recording, recording_from
from planner.types import PlannerError, dtype_bytes
from planner.workload import Sample, Stream, Trace, Workload, traffic_under, workload_from

__all__ = [
    "Answer",
    "Calibration",
    "Candidate",
    "Change",
    "ContextLengths",
    "Degree",
    "Device",
    "Devices",
    "Engine",
    "EnginePlan",
    "Estimate",
    "Evacuation",
    "Experts",
    "Figure",
    "Footprint",
    "GpuMemoryReport",
    "Infeasible",
    "KvCapacity",
    "KvLayout",
    "Latency",
    "Layer",
    "MemoryReport",
    "Mla",
    "ModelShape",
    "Nearest",
    "NearestSlo",
    "Notice",
    "Offer",
    "Percentiles",
    "Plan",
    "PlanQuestion",
    "PlannerError",
    "Point",
    "PoolPlan",
    "Price",
    "Prices",
    "PublicModel",
    "Quantisation",
    "Recording",
    "Sample",
    "Skipped",
    "Slo",
    "SloClass",
    "Space",
    "SpotMarket",
    "SpotMarkets",
    "SpotMix",
    "SpotTerms",
    "State",
    "Stream",
    "Target",
    "Trace",
    "Workload",
    "cheapest_mix",
    "context_lengths",
    "degrees",
    "device",
    "devices_from",
    "dtype_bytes",
    "estimate",
    "estimate_rows",
    "folder_weight_bytes",
    "gpu_memory_report",
    "holds_probability",
    "kv_layout",
    "memory_report",
    "mix_of",
    "plan_for",
    "plan_from",
    "prices_from",
    "public_models",
    "quantisation",
    "read_devices",
    "read_json_object",
    "read_plan",
    "read_prices",
    "read_shape",
    "read_slo",
    "read_spot_markets",
    "read_trace",
    "read_workload",
    "read_yaml_object",
    "recording_from",
    "shape_from_config",
    "shape_of_model",
    "shipped_calibration",
    "slo_from",
    "spot_markets_from",
    "spot_needed",
    "traffic_under",
    "up_probabilities",
    "weight_files",
    "workload_from",
    "write_plan",
]
