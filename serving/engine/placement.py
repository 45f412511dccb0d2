"""What one engine replica takes from Ray: actor options and a placement group. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.settings import EngineSettings

# An engine on CPU is bounded by its threads, not by Ray's bookkeeping; the share only spreads replicas over nodes.
CPU_ENGINE_CPUS = 0.1
GPU_ENGINE_CPUS = 1.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`bundles` and `strategy` are None where no placement group is needed."""

    actor_options: dict[str, Any]
    bundles: list[dict[str, float]] | None = None
    strategy: str | None = None


def place(settings: EngineSettings, *, on_cpu: bool, resources: Mapping[str, float]) -> Placement:
    """Reserve all GPUs of a replica at once, so that two half-placed replicas cannot block each other.

    With vLLM's Ray executor the workers are actors of their own, one GPU bundle each, on any nodes. With its own
    executor they are child processes of the replica, so its GPUs must be in one bundle, on one node.
    """
    if on_cpu:
        return Placement(actor_options={"num_cpus": CPU_ENGINE_CPUS, "resources": dict(resources)})
    gpus = settings.tensor_parallel_size * settings.pipeline_parallel_size
    if settings.args.get("distributed_executor_backend") == "ray":
        first = {"CPU": GPU_ENGINE_CPUS, "GPU": 1.0, **resources}
        return Placement(
            actor_options={"num_cpus": GPU_ENGINE_CPUS, "num_gpus": 0, "resources": dict(resources)},
            bundles=[first, *({"GPU": 1.0} for _ in range(gpus - 1))],
            strategy="PACK",
        )
    return Placement(
        actor_options={"num_cpus": GPU_ENGINE_CPUS, "num_gpus": gpus, "resources": dict(resources)},
        bundles=[{"CPU": GPU_ENGINE_CPUS, "GPU": float(gpus), **resources}],
        strategy="STRICT_PACK",
    )
