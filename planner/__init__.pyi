"""What the front door shows; `__init__.py` loads a name when it is first asked for."""

from .cli import plan_app, simulate_command
from .config import shape_from_config
from .contexts import ContextLengths, context_lengths
from .devices import Device, Devices, Figure, devices_from
from .engine import Engine
from .evacuation import Evacuation
from .files import (
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
from .fit import Degree, degrees, gpu_memory_report
from .footprint import Footprint
from .gaps import Family, Spread, weibull_shape
from .gpu_memory import GpuMemoryReport
from .kv_blocks import KvCapacity, KvLayout, kv_layout
from .library import PublicModel, public_models, shape_of_model
from .memory import MemoryReport, memory_report
from .models import Experts, Layer, Mla, ModelShape, State
from .online import Attained, Observed, PoolObserved, PoolReplan, Replan, ReplanLimits, replan
from .perf.calibration import Calibration
from .perf.estimate import Estimate, Percentiles, estimate, estimate_rows
from .perf.profiled import calibrated_on, estimates_at
from .perf.shipped import shipped_calibration
from .plan import EnginePlan, Plan, PoolPlan, plan_from
from .prices import Offer, Price, Prices, prices_from
from .profile import Profile, ProfilePoint, point_of_load_report, profile_from
from .profiled_costs import step_costs_of
from .quantisations import Quantisation, quantisation
from .rates import SPELLS, RateProfile, constant_rate, on_off, ramp, rate_file, spells, steps
from .recorded import BadLine, RequestTrace, TraceRequest
from .search import (
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
from .servegen import servegen_trace
from .slo import Latency, Slo, SloClass, Target, slo_from
from .spot import (
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
from .trace_formats import TRACE_FORMATS, guess_trace_format, request_trace
from .traces import Recording, recording_from
from .types import PlannerError, dtype_bytes
from .validated_plan import profile_of_results
from .workload import Sample, Stream, Trace, Workload, traffic_under, workload_from

__all__ = [
    "SPELLS",
    "TRACE_FORMATS",
    "Answer",
    "Attained",
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
    "Observed",
    "Offer",
    "Percentiles",
    "Plan",
    "PlanQuestion",
    "PlannerError",
    "Point",
    "PoolObserved",
    "PoolPlan",
    "PoolReplan",
    "Price",
    "Prices",
    "Profile",
    "ProfilePoint",
    "PublicModel",
    "Quantisation",
    "RateProfile",
    "Recording",
    "Replan",
    "ReplanLimits",
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
    "profile_of_results",
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
    "replan",
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
