"""One question to the performance model: what to run, on what, under which load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.devices import Device
from planner.models import ModelShape
from planner.perf.chip import Chip, chip_of
from planner.perf.serving import Engine, Load
from planner.perf.work import Layout, Work, work_of
from planner.quantisation import Quantisation
from planner.types import PlannerError

GIB = 1024**3

MEMORY_SHARE = 0.92  # vLLM's gpu_memory_utilization
# Beside weights and cache: activations of a full budget, CUDA graphs, NCCL (measured on H100: 4.8 GiB and 0.6 GiB).
RESERVED_BYTES = 5 * GIB
RESERVED_SHARE = 0.06  # of a small device; the smaller of the two counts
# vLLM's server: 8,192 tokens per step on devices of 70 GiB and above, 2,048 below; sequences 1,024 and 256.
LARGE_DEVICE_BYTES = 70 * GIB
LARGE_BUDGET, SMALL_BUDGET = 8192, 2048
LARGE_SEQUENCES, SMALL_SEQUENCES = 1024, 256

# Enough per rank to keep any engine full; what offline loads of unlimited size come down to.
OFFLINE_CLIENTS = 2048.0
UNBOUNDED = float("inf")

LoadKind = Literal["concurrency", "request_rate", "batch", "offline"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Prefill and decode pools: how many replicas of each, and their layouts."""

    prefill_replicas: int
    decode_replicas: int
    prefill: Layout
    decode: Layout

    @property
    def devices(self) -> int:
        return self.prefill_replicas * self.prefill.devices + self.decode_replicas * self.decode.devices


@dataclass(frozen=True, kw_only=True)
class Question:
    """Lengths in tokens (means); `load` is clients, requests per second, or the batch, of all replicas together."""

    shape: ModelShape
    device: Device
    layout: Layout
    stored: Quantisation
    kv_dtype: str
    isl: float
    osl: float
    kind: LoadKind
    load: float
    engine: str = "vllm"
    replicas: int = 1  # independent copies of `layout` that share the load
    eager: bool = False  # without CUDA graphs: every kernel of a decode step is launched by Python
    split: Split | None = None
    prompts_per_client: float = 10.0
    spread: float = 0.2
    budget_tokens: int | None = None
    max_sequences: int | None = None
    group: tuple[str, ...] = ()

    def work(self, layout: Layout | None = None) -> Work:
        return work_of(self.shape, layout or self.layout, self.stored, kv_dtype=self.kv_dtype)

    def chip(self) -> Chip:
        return chip_of(self.device, self.stored, packed_kv=self.kv_dtype.startswith("fp8"))

    def engine_limits(self, work: Work) -> Engine:
        """Raises PlannerError if the weights leave no room for a single request."""
        memory = self.device.memory_bytes
        large = memory >= LARGE_DEVICE_BYTES
        pool = MEMORY_SHARE * memory - float(work.weight_bytes[0]) - min(RESERVED_BYTES, RESERVED_SHARE * memory)
        state = float(work.state_bytes[0]) / float(work.pp[0])
        held = float(work.kv_bytes_held[0])
        need = held * (self.isl + 1) + state
        if pool < need:
            raise PlannerError(
                "settings",
                "tp",
                self.layout.tp,
                f"{self.shape.name or 'the model'} needs {float(work.weight_bytes[0]) / GIB:.1f} GiB of weights and "
                f"{need / GIB:.1f} GiB of cache per device, and the {self.device.label} has {memory / GIB:.1f} GiB",
                "raise tp or pp, pack the weights further, or choose a larger device",
            )
        context = self.isl + self.osl / 2
        tokens = pool / (held + state / context) if held + state else UNBOUNDED
        return Engine.row(
            budget_tokens=self.budget_tokens or (LARGE_BUDGET if large else SMALL_BUDGET),
            max_sequences=self.max_sequences or (LARGE_SEQUENCES if large else SMALL_SEQUENCES),
            kv_tokens=tokens,
        )

    def load_row(self) -> Load:
        """What arrives at one replica."""
        closed = self.kind != "request_rate"
        clients = OFFLINE_CLIENTS * self.layout.dp if self.kind == "offline" else self.load / self.replicas
        return Load.row(
            isl=self.isl,
            osl=self.osl,
            concurrency=clients if closed else UNBOUNDED,
            rate_rps=0.0 if closed else self.load / self.replicas,
            prompts_per_client=self.prompts_per_client,
            spread=self.spread,
        )
