"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import.
"""

from planner.devices import Device, Devices, Figure, devices_from
from planner.evacuation import Evacuation
from planner.files import (
    device,
    folder_weight_bytes,
    read_devices,
    read_json_object,
    read_prices,
    read_shape,
    read_slo,
    read_spot_markets,
    read_trace,
    read_workload,
    read_yaml_object,
    weight_files,
)
from planner.memory import MemoryReport, memory_report
from planner.models import ModelShape, shape_from_config
from planner.prices import Offer, Price, Prices, prices_from
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
    "Device",
    "Devices",
    "Evacuation",
    "Figure",
    "Latency",
    "MemoryReport",
    "ModelShape",
    "Notice",
    "Offer",
    "PlannerError",
    "Price",
    "Prices",
    "Recording",
    "Sample",
    "Slo",
    "SloClass",
    "SpotMarket",
    "SpotMarkets",
    "SpotMix",
    "Stream",
    "Target",
    "Trace",
    "Workload",
    "cheapest_mix",
    "device",
    "devices_from",
    "dtype_bytes",
    "folder_weight_bytes",
    "holds_probability",
    "memory_report",
    "mix_of",
    "prices_from",
    "read_devices",
    "read_json_object",
    "read_prices",
    "read_shape",
    "read_slo",
    "read_spot_markets",
    "read_trace",
    "read_workload",
    "read_yaml_object",
    "recording_from",
    "shape_from_config",
    "slo_from",
    "spot_markets_from",
    "spot_needed",
    "traffic_under",
    "up_probabilities",
    "weight_files",
    "workload_from",
]
