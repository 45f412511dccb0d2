"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import.
"""

from planner.cli import plan_app, simulate_command
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
    read_load_point,
    read_plan,
    read_prices,
    read_profile,
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
from planner.gaps import Family, Spread, weibull_shape
from planner.gpu_memory import GpuMemoryReport
from planner.kv_blocks import KvCapacity, KvLayout, kv_layout
from planner.library import PublicModel, public_models, shape_of_model
from planner.memory import MemoryReport, memory_report
from planner.models import Experts, Layer, Mla, ModelShape, State
from planner.perf.calibration import Calibration
from planner.perf.estimate import Estimate, Percentiles, estimate, estimate_rows
from planner.perf.profiled import calibrated_on, estimates_at
from planner.perf.shipped import shipped_calibration
from planner.plan import EnginePlan, Plan, PoolPlan, plan_from
from planner.prices import Offer, Price, Prices, prices_from
from planner.profile import Profile, ProfilePoint, point_of_load_report, profile_from
from planner.profiled_costs import step_costs_of
from planner.quantisation import Quantisation, quantisation
from planner.rates import SPELLS, RateProfile, constant_rate, on_off, ramp, rate_file, spells, steps
from planner.recorded import BadLine, RequestTrace, TraceRequest
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
from planner.servegen import servegen as servegen_trace
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
from planner.trace_formats import TRACE_FORMATS, guess_trace_format, request_trace
from planner.traces import Recording, recording_from
from planner.types import PlannerError, dtype_bytes
from planner.workload import Sample, Stream, Trace, Workload, traffic_under, workload_from

__all__ = [
    "SPELLS",
    "TRACE_FORMATS",
    "Answer",
    "BadLine",
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
    "Family",
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
    "Profile",
    "ProfilePoint",
    "PublicModel",
    "Quantisation",
    "RateProfile",
    "Recording",
    "RequestTrace",
    "Sample",
    "Skipped",
    "Slo",
    "SloClass",
    "Space",
    "SpotMarket",
    "SpotMarkets",
    "SpotMix",
    "SpotTerms",
    "Spread",
    "State",
    "Stream",
    "Target",
    "Trace",
    "TraceRequest",
    "Workload",
    "calibrated_on",
    "cheapest_mix",
    "constant_rate",
    "context_lengths",
    "degrees",
    "device",
    "devices_from",
    "dtype_bytes",
    "estimate",
    "estimate_rows",
    "estimates_at",
    "folder_weight_bytes",
    "gpu_memory_report",
    "guess_trace_format",
    "holds_probability",
    "kv_layout",
    "memory_report",
    "mix_of",
    "on_off",
    "plan_app",
    "plan_for",
    "plan_from",
    "point_of_load_report",
    "prices_from",
    "profile_from",
    "public_models",
    "quantisation",
    "ramp",
    "rate_file",
    "read_devices",
    "read_json_object",
    "read_load_point",
    "read_plan",
    "read_prices",
    "read_profile",
    "read_shape",
    "read_slo",
    "read_spot_markets",
    "read_trace",
    "read_workload",
    "read_yaml_object",
    "recording_from",
    "request_trace",
    "servegen_trace",
    "shape_from_config",
    "shape_of_model",
    "shipped_calibration",
    "simulate_command",
    "slo_from",
    "spells",
    "spot_markets_from",
    "spot_needed",
    "step_costs_of",
    "steps",
    "traffic_under",
    "up_probabilities",
    "weibull_shape",
    "weight_files",
    "workload_from",
    "write_plan",
]
