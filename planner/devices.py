"""Devices: what one GPU, NPU, TPU or CPU socket can do at best, and where each figure comes from.

A figure that nobody gave is None; asking for it raises PlannerError, so it can never count as zero. A thing the
hardware does not have (`lacks`) is refused in other words, because no better source would help there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from planner.documents import Document, Row, nearest, validated
from planner.types import PlannerError

GIB = 1024**3

Confidence = Literal["high", "medium", "low", "derived", "stated"]
FigureName = Literal[
    "bf16_tflops",
    "fp8_tflops",
    "int8_tflops",
    "fp4_tflops",
    "memory_gib",
    "memory_tb_s",
    "scale_up_gb_s",
    "devices_per_node",
    "pcie_gb_s",
    "rdma_gb_s",
]
FIGURES: tuple[FigureName, ...] = get_args(FigureName)

# Which unit multiplies matrices of a number type. fp16 and bf16 run at one speed on every device here.
UNIT_OF_DTYPE: Mapping[str, FigureName] = {
    "bf16": "bf16_tflops",
    "bfloat16": "bf16_tflops",
    "fp16": "bf16_tflops",
    "float16": "bf16_tflops",
    "fp8": "fp8_tflops",
    "int8": "int8_tflops",
    "fp4": "fp4_tflops",
}

# What falls with the share of a device that one tenant holds.
COMPUTE_FIGURES: tuple[FigureName, ...] = ("bf16_tflops", "fp8_tflops", "int8_tflops", "fp4_tflops")
MEMORY_FIGURES: tuple[FigureName, ...] = ("memory_gib", "memory_tb_s")
LINK_FIGURES: tuple[FigureName, ...] = ("pcie_gb_s", "rdma_gb_s")

MAKERS = re.compile(r"nvidia|amd|instinct|intel|google|huawei")


class Figure(Document):
    """One number of a data sheet. In YAML `[989, source, confidence]`, or the bare number in a file of your own."""

    value: PositiveFloat
    source: str = "stated by its file"
    confidence: Confidence = "stated"

    @model_validator(mode="before")
    @classmethod
    def _from_row(cls, data: object) -> object:
        if isinstance(data, list | tuple):
            return dict(zip(("value", "source", "confidence", "too many"), data, strict=False))
        return data if isinstance(data, Mapping) else {"value": data}

    def scaled(self, share: Fraction, how: str) -> Figure:
        return Figure(value=self.value * float(share), source=f"{self.source}; {how}", confidence="derived")


class MigProfile(Document):
    """One size of hardware slice (NVIDIA MIG), in the device's own slices of compute and memory."""

    name: str
    compute_slices: PositiveInt
    memory_slices: PositiveInt


class Mig(Document):
    """How a device can be cut in hardware."""

    compute_slices: PositiveInt
    memory_slices: PositiveInt
    profiles: Row[MigProfile]


class Device(Document):
    """One device: peak dense speeds, memory and links. Links are per direction.

    `devices_per_node`: how many share the scale-up links (72 in an NVL72 rack), or one host without such links.
    """

    name: str
    label: str
    vendor: str
    kind: Literal["gpu", "npu", "tpu", "cpu"]
    aliases: Row[str] = ()
    lacks: Row[FigureName] = ()
    note: str = ""
    bf16_tflops: Figure | None = None
    fp8_tflops: Figure | None = None
    int8_tflops: Figure | None = None
    fp4_tflops: Figure | None = None
    memory_gib: Figure | None = None
    memory_tb_s: Figure | None = None
    scale_up_gb_s: Figure | None = None
    devices_per_node: Figure | None = None
    pcie_gb_s: Figure | None = None
    rdma_gb_s: Figure | None = None
    mig: Mig | None = None
    # Of a fraction: the whole device's name, and how many such fractions it holds.
    fraction_of: str | None = None
    per_device: PositiveInt = 1
    file: str = "devices.yaml"

    def figure(self, name: FigureName) -> Figure:
        """The figure with its source. Raises PlannerError if it is unknown, or if the hardware has no such thing."""
        figure: Figure | None = getattr(self, name)
        if figure is not None:
            return figure
        key = f"{self.name}.{name}"
        if name in self.lacks:
            problem, remedy = f"the {self.label} has none", _instead_of(name, self)
        else:
            problem, remedy = "nobody has given this figure", f"add {key} to a device file of your own"
        raise PlannerError(self.file, key, None, problem, remedy)

    def has(self, name: FigureName) -> bool:
        """Whether the figure is known."""
        return getattr(self, name) is not None

    def peak_flops(self, dtype: str) -> float:
        """Dense FLOP/s (or integer op/s) of matrix products in `dtype`: bf16, fp16, fp8, int8 or fp4.

        Raises PlannerError for another type, an unknown figure, or a type that the hardware lacks.
        """
        unit = UNIT_OF_DTYPE.get(dtype)
        if unit is None:
            raise PlannerError("settings", "dtype", dtype, "no device multiplies in it", nearest(dtype, UNIT_OF_DTYPE))
        return self.figure(unit).value * 1e12

    def multiplies(self, dtype: str) -> bool:
        """Whether the device has a unit of known speed for `dtype`."""
        return dtype in UNIT_OF_DTYPE and self.has(UNIT_OF_DTYPE[dtype])

    @property
    def memory_bytes(self) -> int:
        """What the driver shows to a program, which is a little less than the box says."""
        return round(self.figure("memory_gib").value * GIB)

    @property
    def memory_bytes_per_s(self) -> float:
        return self.figure("memory_tb_s").value * 1e12

    @property
    def has_scale_up(self) -> bool:
        """Whether devices of a node talk over a fabric of their own (NVLink, Infinity Fabric, ICI, HCCS)."""
        return self.has("scale_up_gb_s")

    @property
    def scale_up_bytes_per_s(self) -> float:
        """Per direction. Raises PlannerError if the device has no such fabric; see `peer_bytes_per_s`."""
        return self.figure("scale_up_gb_s").value * 1e9

    @property
    def peer_bytes_per_s(self) -> float:
        """Per direction, to another device of the node: by the scale-up fabric, without one by PCIe."""
        if "scale_up_gb_s" in self.lacks:
            return self.pcie_bytes_per_s
        return self.scale_up_bytes_per_s

    @property
    def node_devices(self) -> int:
        """How many devices tensor parallelism can join without the network."""
        return round(self.figure("devices_per_node").value)

    @property
    def pcie_bytes_per_s(self) -> float:
        """Per direction, to the host."""
        return self.figure("pcie_gb_s").value * 1e9

    @property
    def rdma_bytes_per_s(self) -> float:
        """Per direction and device, to other nodes."""
        return self.figure("rdma_gb_s").value * 1e9

    @property
    def whole(self) -> str:
        """The name prices go by: of the whole device."""
        return self.fraction_of or self.name

    def fraction(self, spec: str) -> Device:
        """A part of this device: a MIG profile (`1g.10gb`) or a time slice (`1/4`). Raises PlannerError.

        A part serves alone: there is no fabric between parts, and a time slice keeps 1/n of the time and memory.
        """
        if self.fraction_of is not None:
            raise PlannerError("settings", "system", f"{self.name}:{spec}", "it is a fraction already", "cut once")
        sliced = re.fullmatch(r"1/([1-9]\d?)", spec)
        if sliced:
            count = int(sliced[1])
            return self._part(spec, Fraction(1, count), Fraction(1, count), count)
        profiles = {profile.name: profile for profile in self.mig.profiles} if self.mig else {}
        if self.mig is None or spec not in profiles:
            known = (
                nearest(spec, profiles) if profiles else f"the {self.label} has no MIG: use a time slice such as 1/4"
            )
            raise PlannerError("settings", "system", f"{self.name}:{spec}", "no such fraction", known)
        profile = profiles[spec]
        compute = Fraction(profile.compute_slices, self.mig.compute_slices)
        memory = Fraction(profile.memory_slices, self.mig.memory_slices)
        return self._part(spec, compute, memory, min(int(1 / compute), int(1 / memory)))

    def _part(self, spec: str, compute: Fraction, memory: Fraction, count: int) -> Device:
        shares: dict[FigureName, Fraction] = {
            **dict.fromkeys(COMPUTE_FIGURES, compute),
            **dict.fromkeys(MEMORY_FIGURES, memory),
            **dict.fromkeys(LINK_FIGURES, Fraction(1, count)),
        }
        changes: dict[str, object] = {
            name: self.figure(name).scaled(share, f"times {share} for {spec}")
            for name, share in shares.items()
            if self.has(name)
        }
        changes |= {
            "name": f"{self.name}:{spec}",
            "label": f"{self.label} {spec}",
            "aliases": (),
            "scale_up_gb_s": None,
            "lacks": tuple(sorted({*self.lacks, "scale_up_gb_s"})),
            "devices_per_node": Figure(value=1, source="there is no fabric between fractions", confidence="derived"),
            "mig": None,
            "fraction_of": self.name,
            "per_device": count,
        }
        return self.model_copy(update=changes)


class Devices(Document):
    """A catalogue: look devices up by name, alias, or `name:fraction`."""

    devices: Row[Device]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.devices)

    def device(self, name: str) -> Device:
        """The device called `name`: `h100_sxm`, `H100`, `NVIDIA L40S`, `h100_sxm:1g.10gb`, `l4:1/2`.

        Raises PlannerError with the nearest names for anything else.
        """
        whole, cut, fraction = name.partition(":")
        wanted = _plain(whole)
        for device in self.devices:
            if wanted in map(_plain, (device.name, *device.aliases)):
                return device.fraction(fraction.strip()) if cut else device
        raise PlannerError("settings", "system", name, "no such device", nearest(whole.replace("-", "_"), self.names))

    def with_own(self, own: Devices) -> Devices:
        """This catalogue with `own` devices in front; one of the same name takes the other's place."""
        kept = tuple(device for device in self.devices if device.name not in own.names)
        return Devices(devices=own.devices + kept)


class _DeviceEntry(Document):
    """A device as its file writes it; the name is its key there. The first eight numbers are all it takes."""

    bf16_tflops: Figure
    memory_gib: Figure
    memory_tb_s: Figure
    fp8_tflops: Figure | None = None
    scale_up_gb_s: Figure | None = None
    devices_per_node: Figure | None = None
    pcie_gb_s: Figure | None = None
    rdma_gb_s: Figure | None = None
    int8_tflops: Figure | None = None
    fp4_tflops: Figure | None = None
    label: str = ""
    vendor: str = "unnamed"
    kind: Literal["gpu", "npu", "tpu", "cpu"] = "gpu"
    aliases: Row[str] = ()
    lacks: Row[FigureName] = ()
    note: str = ""
    mig: str = ""


class _DevicesFile(Document):
    devices: Annotated[dict[str, _DeviceEntry], Field(min_length=1)]
    sources: dict[str, str] = Field(default_factory=dict)
    mig: dict[str, Mig] = Field(default_factory=dict)


def devices_from(data: object, *, file: str) -> Devices:
    """The catalogue in parsed YAML. Raises PlannerError for unknown keys, sources, or what is both given and lacked."""
    document = validated(_DevicesFile, data, file=file)
    return Devices(
        devices=tuple(_device(name, entry, document, file) for name, entry in document.devices.items()),
    )


def _device(name: str, entry: _DeviceEntry, document: _DevicesFile, file: str) -> Device:
    figures: dict[str, Figure] = {}
    for figure_name in FIGURES:
        figure: Figure | None = getattr(entry, figure_name)
        if figure is None:
            continue
        key = f"devices.{name}.{figure_name}"
        if figure_name in entry.lacks:
            raise PlannerError(file, key, figure.value, "it is under `lacks` too", "keep one of the two")
        if figure_name == "devices_per_node" and not figure.value.is_integer():
            raise PlannerError(file, key, figure.value, "a whole number is needed", f"correct {key}")
        figures[figure_name] = _with_source_text(figure, document.sources, file, key)
    if entry.mig and entry.mig not in document.mig:
        raise PlannerError(file, f"devices.{name}.mig", entry.mig, "no such table", nearest(entry.mig, document.mig))
    device = Device(
        name=name,
        label=entry.label or name,
        vendor=entry.vendor,
        kind=entry.kind,
        aliases=entry.aliases,
        lacks=entry.lacks,
        note=entry.note,
        mig=document.mig.get(entry.mig),
        file=file,
    )
    return device.model_copy(update=figures)


def _with_source_text(figure: Figure, sources: Mapping[str, str], file: str, key: str) -> Figure:
    if figure.confidence == "stated":
        return figure
    if figure.source not in sources:
        raise PlannerError(file, key, figure.source, "no such source", nearest(figure.source, sources))
    return figure.model_copy(update={"source": sources[figure.source]})


def _plain(name: str) -> str:
    """`NVIDIA L40S`, `l40s` and `L-40S` are one name; so are `H100-SXM` and `h100_sxm`."""
    return MAKERS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))


def _instead_of(name: FigureName, device: Device) -> str:
    if name == "scale_up_gb_s":
        return "devices of a node talk over PCIe: ask for peer_bytes_per_s"
    if name in COMPUTE_FIGURES:
        able = [figure.removesuffix("_tflops") for figure in COMPUTE_FIGURES if device.has(figure)]
        return f"use {' or '.join(able)}"
    return "choose another device"
