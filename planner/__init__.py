"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import.
"""

from planner.config import shape_from_config
from planner.devices import Device, Devices, Figure, devices_from
from planner.engine import Engine
from planner.files import device, folder_weight_bytes, read_devices, read_json_object, read_shape, weight_files
from planner.fit import Degree, degrees, gpu_memory_report
from planner.footprint import Footprint
from planner.gpu_memory import GpuMemoryReport
from planner.kv_blocks import KvCapacity, KvLayout, kv_layout
from planner.lengths import Lengths, lengths
from planner.library import PublicModel, public_models, shape_of_model
from planner.memory import MemoryReport, memory_report
from planner.models import Experts, Layer, Mla, ModelShape, State
from planner.quantisation import Quantisation, quantisation
from planner.types import PlannerError, dtype_bytes

__all__ = [
    "Degree",
    "Device",
    "Devices",
    "Engine",
    "Experts",
    "Figure",
    "Footprint",
    "GpuMemoryReport",
    "KvCapacity",
    "KvLayout",
    "Layer",
    "Lengths",
    "MemoryReport",
    "Mla",
    "ModelShape",
    "PlannerError",
    "PublicModel",
    "Quantisation",
    "State",
    "degrees",
    "device",
    "devices_from",
    "dtype_bytes",
    "folder_weight_bytes",
    "gpu_memory_report",
    "kv_layout",
    "lengths",
    "memory_report",
    "public_models",
    "quantisation",
    "read_devices",
    "read_json_object",
    "read_shape",
    "shape_from_config",
    "shape_of_model",
    "weight_files",
]
