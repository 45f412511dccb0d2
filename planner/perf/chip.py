"""A device's peaks, and how much of each an engine reaches before anything was measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from planner.devices import UNIT_OF_DTYPE, Device
from planner.perf.arrays import Array, Table
from planner.quantisations import Quantisation
from planner.types import PlannerError

BITS_16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Achieved share of a peak: prefill matrix products by number type, prefill attention, streaming memory."""

    products_16: float = 0.65
    products_8: float = 0.50
    products_4: float = 0.40
    attention: float = 0.45
    memory: float = 0.75
    kv: float = 0.80
    kv_8: float = 0.75


# Medians of operator timings that AIConfigurator 0.12 (Apache-2.0) ships for vLLM's kernels. Its small products are
# part latency, which we count per layer, so `memory` is a little higher where memory is fast.
MEASURED_REACH: Mapping[str, Reach] = MappingProxyType(
    {
        "a100_sxm": Reach(products_16=0.80, attention=0.50, memory=0.75, kv=0.70),
        "h100_sxm": Reach(products_16=0.75, products_8=0.54, attention=0.50, memory=0.80, kv=0.84, kv_8=0.74),
        "h200_sxm": Reach(products_16=0.75, products_8=0.58, attention=0.50, memory=0.80, kv=0.78, kv_8=0.56),
        "b200_sxm": Reach(
            products_16=0.67, products_8=0.45, products_4=0.42, attention=0.42, memory=0.76, kv=0.81, kv_8=0.78
        ),
        "b300_sxm": Reach(
            products_16=0.72, products_8=0.47, products_4=0.35, attention=0.48, memory=0.76, kv=0.80, kv_8=0.79
        ),
        "gb200": Reach(
            products_16=0.66, products_8=0.44, products_4=0.40, attention=0.40, memory=0.76, kv=0.80, kv_8=0.78
        ),
        "gb300": Reach(
            products_16=0.66, products_8=0.44, products_4=0.35, attention=0.40, memory=0.76, kv=0.80, kv_8=0.78
        ),
        "l40s": Reach(products_16=0.60, products_8=0.48, attention=0.46, memory=0.79, kv=0.80, kv_8=0.78),
        "rtx_pro_6000_server": Reach(
            products_16=0.80, products_8=0.72, products_4=0.60, attention=0.55, memory=0.80, kv=0.80, kv_8=0.80
        ),
    }
)
TYPICAL_REACH = Reach()
STREAM_4_BITS = 0.8  # the same tables: nvfp4 against fp8, small m
# 4-bit experts multiplied in 16 bits; others than these run in Marlin kernels, which were made for Ampere.
UNPACKED_EXPERTS: Mapping[str, float] = MappingProxyType({"mxfp4": 0.6})
# Kernels that unpack weights on the way into 16-bit units: for which formats, and for whose devices.
UNPACKED_UNITS, UNPACKING_VENDORS = ("fp8", "fp4"), ("nvidia",)


@dataclass(frozen=True, kw_only=True)
class Chip(Table):
    """Speeds in FLOP/s and bytes/s, already times the reach; the peaks of memory and links are as on the sheet."""

    products_16: Array
    products_packed: Array  # in the unit that the stored format multiplies in
    attention: Array
    memory: Array  # streaming weights of 16 bits
    memory_packed: Array  # streaming packed ones, in bytes as stored
    memory_experts: Array
    kv: Array
    link: Array  # to a device of the same node, per direction, sheet value
    fabric: Array  # 1 where devices of a node have links of their own, 0 where they share PCIe
    network: Array  # to another node, per device and direction; infinite when unknown and unneeded
    node_devices: Array
    memory_bytes: Array
    measured: Array  # 1 where the reach was measured on this device


def chip_of(device: Device, stored: Quantisation, *, packed_kv: bool = False) -> Chip:
    """One row. Raises PlannerError if a needed figure of the device is missing."""
    reach = MEASURED_REACH.get(device.whole, TYPICAL_REACH)
    unit, share = product_unit(device, stored, reach)
    return Chip.row(
        products_16=device.peak_flops("bf16") * reach.products_16,
        products_packed=device.peak_flops(unit) * share,
        attention=device.peak_flops("bf16") * reach.attention,
        memory=device.memory_bytes_per_s * reach.memory,
        memory_packed=device.memory_bytes_per_s * reach.memory * _packed_share(stored, unit),
        memory_experts=device.memory_bytes_per_s * reach.memory * _packed_share(stored, unit, experts=True),
        kv=device.memory_bytes_per_s * (reach.kv_8 if packed_kv else reach.kv),
        link=device.peer_bytes_per_s if device.has_scale_up or device.has("pcie_gb_s") else float("inf"),
        fabric=float(device.has_scale_up),
        network=device.rdma_bytes_per_s if device.has("rdma_gb_s") else float("inf"),
        node_devices=device.node_devices if device.has("devices_per_node") else 1.0,
        memory_bytes=device.memory_bytes,
        measured=float(device.whole in MEASURED_REACH),
    )


def _packed_share(stored: Quantisation, unit: str, *, experts: bool = False) -> float:
    """How much slower than 16-bit weights packed ones stream: more scales, and unpacking where the unit is missing."""
    if stored.weight_bits > 4:
        return 1.0
    if experts:
        return UNPACKED_EXPERTS.get(stored.name, 0.35) if unit == "bf16" else 1.0
    return STREAM_4_BITS


def product_unit(device: Device, stored: Quantisation, reach: Reach) -> tuple[str, float]:
    """The number type that the packed matrices multiply in on this device, and its reach.

    Weights alone can be packed: where an NVIDIA device lacks the unit, vLLM unpacks to 16 bits (Marlin kernels).
    Raises PlannerError where there is no such way, or nobody has said how fast the unit is.
    """
    shares = {"fp8": reach.products_8, "int8": reach.products_8, "fp4": reach.products_4}
    unit = stored.compute_dtype
    if unit not in shares:
        return "bf16", reach.products_16
    if device.multiplies(unit):
        return unit, shares[unit]
    if UNIT_OF_DTYPE[unit] not in device.lacks:
        device.figure(UNIT_OF_DTYPE[unit])  # says what is missing
    if unit not in UNPACKED_UNITS or device.vendor not in UNPACKING_VENDORS:
        able = [dtype for dtype in ("fp8", "int8") if device.multiplies(dtype)]
        remedy = f"use {' or '.join([*able, 'int4', 'bfloat16'])}"
        raise PlannerError("settings", "quant", stored.name, f"the {device.label} has no {unit} unit", remedy)
    return "bf16", reach.products_16
