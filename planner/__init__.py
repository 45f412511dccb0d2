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
    read_load_point,
    read_prices,
    read_profile,
    read_shape,
    read_slo,
    read_spot_markets,
    read_trace,
    read_workload,
    read_yaml_object,
    weight_files,
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
from planner.perf.profiled import calibrated_on, estimates_at
from planner.perf.shipped import shipped_calibration
from planner.prices import Offer, Price, Prices, prices_from
from planner.profile import Profile, ProfilePoint, point_of_load_report, profile_from
from planner.profiled_costs import step_costs_of
from planner.quantisation import Quantisation, quantisation
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
    "Calibration",
    "ContextLengths",
    "Degree",
    "Device",
    "Devices",
    "Engine",
    "Estimate",
    "Evacuation",
    "Experts",
    "Figure",
    "Footprint",
    "GpuMemoryReport",
    "KvCapacity",
    "KvLayout",
    "Latency",
    "Layer",
    "MemoryReport",
    "Mla",
    "ModelShape",
    "Notice",
    "Offer",
    "Percentiles",
    "PlannerError",
    "Price",
    "Prices",
    "Profile",
    "ProfilePoint",
    "PublicModel",
    "Quantisation",
    "Recording",
    "Sample",
    "Slo",
    "SloClass",
    "SpotMarket",
    "SpotMarkets",
    "SpotMix",
    "State",
    "Stream",
    "Target",
    "Trace",
    "Workload",
    "calibrated_on",
    "cheapest_mix",
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
    "holds_probability",
    "kv_layout",
    "memory_report",
    "mix_of",
    "point_of_load_report",
    "prices_from",
    "profile_from",
    "public_models",
    "quantisation",
    "read_devices",
    "read_json_object",
    "read_load_point",
    "read_prices",
    "read_profile",
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
    "step_costs_of",
    "traffic_under",
    "up_probabilities",
    "weight_files",
    "workload_from",
]
