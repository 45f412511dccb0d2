"""Ways to store and split a model, and which devices can run which: everything but batch limits and counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.devices import Device
from planner.engine import Engine
from planner.models import ModelShape
from planner.perf.calibration import Rung, Sigma
from planner.perf.chip import Chip, chip_of
from planner.perf.question import Question
from planner.perf.work import Layout, storage
from planner.quantisations import Quantisation
from planner.search.question import PlanQuestion
from planner.split import Split
from planner.types import PlannerError

# Formats that vLLM packs by itself while it loads a 16-bit checkpoint (`--quantization`).
PACKED_ON_LOAD = ("fp8",)
SIXTEEN_BITS = 16
# More devices without links of their own are joined over PCIe, where collectives cost more than they bring.
MOST_WITHOUT_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the model is stored and split. `quant` is the word that was asked for; None the checkpoint's own format."""

    quant: str | None
    stored: Quantisation
    kv_dtype: str
    layout: Layout

    @property
    def name(self) -> str:
        """Such as `TP2 fp8, KV fp8`."""
        layout = self.layout
        parts = [f"TP{layout.tp}"]
        parts += [f"PP{layout.pp}"] if layout.pp > 1 else []
        parts += [f"EP{layout.ep}"] if layout.ep > 1 else []
        kv = f", KV {self.kv_dtype}" if self.kv_dtype != "auto" else ""
        return f"{' '.join(parts)} {self.stored.name}{kv}"

    @property
    def packs_on_load(self) -> bool:
        """Whether vLLM makes this format itself from the checkpoint as it is."""
        return self.quant in PACKED_ON_LOAD

    def engine(self, question: PlanQuestion, *, budget_tokens: int, max_num_seqs: int | None, max_len: int) -> Engine:
        """The engine for the memory report. Its model must be stored as this form says: see `stored_shape`."""
        return Engine(
            tp=self.layout.tp,
            pp=self.layout.pp,
            ep=self.layout.ep,
            kv_dtype=self.kv_dtype,
            gpu_memory_utilization=question.gpu_memory_utilization,
            max_model_len_tokens=max_len,
            max_num_batched_tokens=budget_tokens,
            max_num_seqs=max_num_seqs,
        )

    def stored_shape(self, shape: ModelShape) -> ModelShape:
        return shape if self.quant is None else replace(shape, quantisation=self.stored)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A form on a device. `chip`, `base` index into the tables of `Forms`."""

    device: int
    form: int
    chip: int
    base: int


@dataclass(frozen=True, kw_only=True)
class Base:
    """What calibration knows of a storage format on a device, as the question that asks for it."""

    question: Question
    rung: Rung
    sigma: Sigma


@dataclass(frozen=True, kw_only=True)
class Forms:
    """All pairs worth trying."""

    devices: tuple[Device, ...]
    forms: tuple[Form, ...]
    chips: tuple[Chip, ...]
    bases: tuple[Base, ...]
    pairs: tuple[Pair, ...]
    refusals: tuple[tuple[str, PlannerError], ...]  # what was left out, and why


def all_forms(question: PlanQuestion, devices: tuple[Device, ...], *, isl: float, osl: float) -> Forms:
    """The pairs of devices and forms that the model, the device and vLLM allow; the others with their reason."""
    forms: dict[Form, int] = {}
    chip_rows: list[Chip] = []
    base_rows: list[Base] = []
    pairs: list[Pair] = []
    refusals: list[tuple[str, PlannerError]] = []
    layouts = tuple(_layouts(question))
    for at, device in enumerate(devices):
        for quant in _quants(question, device):
            try:
                stored = storage(question.shape, quant)
                _refuse_foreign(device, stored)
                found = [(kv, chip_of(device, stored, packed_kv=kv != "auto")) for kv in _kv_dtypes(question, device)]
                base = _base(question, device, stored, isl, osl)
            except PlannerError as error:
                refusals.append((f"{device.name} {quant or 'as stored'}", error))
                continue
            base_rows.append(base)
            for kv, chip in found:
                chip_rows.append(chip)
                for layout in layouts:
                    if not _joins(device, layout):
                        continue
                    form = Form(quant=quant, stored=stored, kv_dtype=kv, layout=layout)
                    pairs.append(
                        Pair(
                            device=at,
                            form=forms.setdefault(form, len(forms)),
                            chip=len(chip_rows) - 1,
                            base=len(base_rows) - 1,
                        )
                    )
    return Forms(
        devices=devices,
        forms=tuple(forms),
        chips=tuple(chip_rows),
        bases=tuple(base_rows),
        pairs=tuple(pairs),
        refusals=tuple(refusals),
    )


def _layouts(question: PlanQuestion) -> Iterator[Layout]:
    shape, space = question.shape, question.space
    for tp in space.tensor_degrees:
        for pp in space.pipeline_degrees:
            expert_degrees = (1, tp) if space.expert_parallel and shape.num_experts > 1 and tp > 1 else (1,)
            for ep in expert_degrees:
                try:
                    Split(tp=tp, pp=pp, ep=ep).check(shape)
                except PlannerError:
                    continue  # vLLM refuses this split of this model on any device
                yield Layout(tp=tp, pp=pp, ep=ep)


def _quants(question: PlanQuestion, device: Device) -> tuple[str | None, ...]:
    if question.space.quants:
        return question.space.quants
    plain = question.shape.quantisation.weight_bits >= SIXTEEN_BITS
    return (None, *(quant for quant in PACKED_ON_LOAD if plain and device.multiplies(quant)))


def _kv_dtypes(question: PlanQuestion, device: Device) -> tuple[str, ...]:
    return question.space.kv_dtypes or (("auto", "fp8") if device.multiplies("fp8") else ("auto",))


def _refuse_foreign(device: Device, stored: Quantisation) -> None:
    """A format whose unit the hardware is known to lack and that vLLM does not unpack there."""
    if stored.compute_dtype == "fp8" and "fp8_tflops" in device.lacks and device.kind != "gpu":
        raise PlannerError("settings", "quant", stored.name, f"the {device.label} has no fp8 unit", "use int8 or bf16")


def _joins(device: Device, layout: Layout) -> bool:
    """Whether tensor parallelism stays within one node; fractions serve alone."""
    if layout.devices == 1:
        return True
    if device.fraction_of is not None:
        return False
    node = device.node_devices if device.has("devices_per_node") else MOST_WITHOUT_NODE
    return layout.tp <= node


def _base(question: PlanQuestion, device: Device, stored: Quantisation, isl: float, osl: float) -> Base:
    asked = Question(
        shape=question.shape,
        device=device,
        layout=Layout(),
        stored=stored,
        kv_dtype="auto",
        isl=isl,
        osl=osl,
        kind="request_rate",
        load=1.0,
    )
    rung = question.calibration.rung(asked)
    return Base(question=asked, rung=rung, sigma=question.calibration.sigmas[rung])
