"""One question to the performance model: what to run, on what, under which load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.devices import Device
from planner.models import ModelShape
from planner.perf.chip import Chip, chip_of
from planner.perf.limits import Limits, limits_of, no_room
from planner.perf.serving import Engine, Load
from planner.perf.work import Layout, Work, work_of
from planner.quantisations import Quantisation

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
    kv_cache_bytes: int | None = None  # of one device; None: what weights and activations leave
    group: tuple[str, ...] = ()

    def work(self, layout: Layout | None = None) -> Work:
        return work_of(self.shape, layout or self.layout, self.stored, kv_dtype=self.kv_dtype)

    def chip(self) -> Chip:
        return chip_of(self.device, self.stored, packed_kv=self.kv_dtype.startswith("fp8"))

    def limits(self) -> Limits:
        """What one engine may batch and hold. Raises PlannerError for a split that vLLM refuses."""
        return limits_of(
            self.shape,
            self.device,
            self.layout,
            self.stored,
            kv_dtype=self.kv_dtype,
            budget_tokens=self.budget_tokens,
            max_sequences=self.max_sequences,
            kv_cache_bytes=self.kv_cache_bytes,
            lengths=(self.isl, self.osl),
        )

    def engine_limits(self, work: Work) -> Engine:
        """Raises PlannerError if the weights leave no room for a single request."""
        limits = self.limits()
        if not limits.holds(self.isl + 1):
            raise no_room(self.shape, self.device, self.layout, float(work.weight_bytes[0]), self.isl + 1)
        context = self.isl + self.osl / 2
        return Engine.row(
            budget_tokens=limits.budget_tokens,
            max_sequences=limits.max_sequences,
            kv_tokens=limits.contexts(context) * context,
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
