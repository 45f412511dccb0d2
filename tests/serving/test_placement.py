"""What an engine replica takes from Ray."""

from __future__ import annotations

from typing import Any

import pytest

from serving.engine.placement import CPU_ENGINE_CPUS, GPU_ENGINE_CPUS, place
from serving.settings import EngineSettings

RAY = {"distributed_executor_backend": "ray"}


def test_an_engine_on_cpu_needs_no_group() -> None:
    placement = place(EngineSettings(tensor_parallel_size=4), on_cpu=True, resources={"spot": 1.0})
    assert placement.actor_options == {"num_cpus": CPU_ENGINE_CPUS, "resources": {"spot": 1.0}}
    assert placement.bundles is None and placement.strategy is None


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("args", [{}, RAY])
@pytest.mark.parametrize("resources", [{}, {"spot": 0.5}])
def test_all_gpus_are_reserved_at_once(tp: int, pp: int, args: dict[str, Any], resources: dict[str, float]) -> None:
    settings = EngineSettings(tensor_parallel_size=tp, pipeline_parallel_size=pp, args=args)
    placement = place(settings, on_cpu=False, resources=resources)
    assert placement.bundles is not None
    assert sum(bundle.get("GPU", 0) for bundle in placement.bundles) == tp * pp
    assert len(placement.bundles) == (tp * pp if args else 1)
    assert placement.strategy == ("PACK" if args else "STRICT_PACK")
    # Ray places the replica in the first bundle: it must hold all that the replica asks for.
    options = placement.actor_options
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    assert options["num_cpus"] == GPU_ENGINE_CPUS and options["resources"] == resources
    assert all(placement.bundles[0].get(name, 0) >= amount for name, amount in asked.items())


def test_with_rays_executor_the_replica_itself_takes_no_gpu() -> None:
    placement = place(EngineSettings(tensor_parallel_size=2, args=RAY), on_cpu=False, resources={"spot": 1.0})
    assert placement.actor_options["num_gpus"] == 0
    assert placement.bundles == [{"CPU": 1.0, "GPU": 1.0, "spot": 1.0}, {"GPU": 1.0}]
