"""Which splits of a model fit which GPUs: one report, or one for each tensor and pipeline degree."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.contexts import ContextLengths
from planner.engine import MAX_NUM_SEQS, Engine
from planner.footprint import Footprint
from planner.gpu_memory import SIGMAS, GpuMemoryReport
from planner.models import ModelShape
from planner.types import PlannerError


def gpu_memory_report(
    shape: ModelShape,
    engine: Engine,
    lengths: ContextLengths,
    *,
    memory_bytes: int,
    device: str = "GPU",
    exact_weight_bytes: int | None = None,
    footprint: Footprint | None = None,
) -> GpuMemoryReport:
    """The report for `engine` on devices of `memory_bytes` (as PyTorch sees it, not as the vendor prints it).

    Without `max_num_seqs` the engine gets the most that the KV cache beside it can feed. `exact_weight_bytes` is of
    the whole model. Raises PlannerError for a split that vLLM refuses.
    """
    if memory_bytes < 1:
        raise PlannerError("settings", "memory_bytes", memory_bytes, "must be above zero", "give the device's memory")
    known, layout = footprint or Footprint(), engine.layout(shape)
    stages = [
        GpuMemoryReport(
            shape=shape,
            engine=engine,
            layout=layout,
            lengths=lengths,
            device=device,
            memory_bytes=memory_bytes,
            weights_bytes=weights_bytes,
            activation_bytes=known.activation(shape, engine),
            graph_bytes=known.graph_bytes,
            other_bytes=known.other(engine),
            stage=stage,
        )
        for stage, weights_bytes in enumerate(_stage_weights(shape, engine, exact_weight_bytes))
        # A stage without any layer that keeps something does not limit the blocks.
        if layout.block_bytes(stage=stage)
    ]
    seqs = engine.max_num_seqs or _most_seqs(stages, known)
    return _tightest(stages, known, seqs)


def _stage_weights(shape: ModelShape, engine: Engine, exact_bytes: int | None) -> list[int]:
    stored = shape.quantised(engine.quant)
    return [
        stored.weight_bytes(exact_bytes=exact_bytes, tp=engine.tp, pp=engine.pp, ep=engine.ep, stage=stage)
        for stage in range(engine.pp)
    ]


def _tightest(stages: list[GpuMemoryReport], footprint: Footprint, max_num_seqs: int) -> GpuMemoryReport:
    engine = stages[0].engine.with_seqs(max_num_seqs)
    activation_bytes = footprint.activation(stages[0].shape, engine)
    sized = (replace(stage, engine=engine, activation_bytes=activation_bytes) for stage in stages)
    return min(sized, key=lambda stage: stage.blocks)


def _most_seqs(stages: list[GpuMemoryReport], footprint: Footprint) -> int:
    """More sequences need more activations and leave fewer blocks, so the two meet in one place."""
    low, high = 1, MAX_NUM_SEQS
    while low < high:
        middle = (low + high + 1) // 2
        enough = _tightest(stages, footprint, middle).contexts(sigmas=SIGMAS) >= middle
        low, high = (middle, high) if enough else (low, middle - 1)
    return low


@dataclass(frozen=True, kw_only=True)
class Degree:
    """One split that was tried: its report, or why vLLM refuses it."""

    tp: int
    pp: int
    report: GpuMemoryReport | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        return self.report is not None and self.report.fits

    @property
    def reason(self) -> str:
        """Why it does not fit; empty if it does."""
        return self.report.remedy if self.report else self.refusal


def degrees(
    shape: ModelShape,
    engine: Engine,
    lengths: ContextLengths,
    *,
    memory_bytes: int,
    max_devices: int,
    tensor_degrees: tuple[int, ...] = (1, 2, 4, 8),
    device: str = "GPU",
    exact_weight_bytes: int | None = None,
    footprint: Footprint | None = None,
) -> tuple[Degree, ...]:
    """Every tensor × pipeline degree of up to `max_devices` GPUs, fewest devices first.

    An `ep` above 1 in `engine` follows the tensor degree. Raises PlannerError for other errors than of the split.
    """
    pairs = [(tp, pp) for tp in tensor_degrees for pp in range(1, max_devices // tp + 1) if pp & (pp - 1) == 0]
    found = []
    for tp, pp in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1])):
        split = replace(engine, tp=tp, pp=pp, ep=tp if engine.ep > 1 else 1)
        try:
            report = gpu_memory_report(
                shape,
                split,
                lengths,
                memory_bytes=memory_bytes,
                device=device,
                exact_weight_bytes=exact_weight_bytes,
                footprint=footprint,
            )
        except PlannerError as error:
            if error.key not in ("tp", "pp", "ep"):
                raise
            found.append(Degree(tp=tp, pp=pp, report=None, refusal=str(error)))
        else:
            found.append(Degree(tp=tp, pp=pp, report=report))
    return tuple(found)
