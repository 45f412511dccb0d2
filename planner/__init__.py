"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import.
"""

from planner.devices import Device, Devices, Figure, devices_from
from planner.files import (
    device,
    folder_weight_bytes,
    read_devices,
    read_json_object,
    read_shape,
    weight_files,
)
from planner.memory import MemoryReport, memory_report
from planner.models import ModelShape, shape_from_config
from planner.types import PlannerError, dtype_bytes

__all__ = [
    "Device",
    "Devices",
    "Figure",
    "MemoryReport",
    "ModelShape",
    "PlannerError",
    "device",
    "devices_from",
    "dtype_bytes",
    "folder_weight_bytes",
    "memory_report",
    "read_devices",
    "read_json_object",
    "read_shape",
    "shape_from_config",
    "weight_files",
]
