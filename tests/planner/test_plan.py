"""plan.yaml: written and read back, the engine's flags, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import PlannerError, plan_from, read_plan, write_plan
from tests.planner.plans import plan, pool


def test_a_plan_is_read_back_as_written(tmp_path: Path) -> None:
    made = plan(pool("prefill"), pool("decode", replicas=3, spot=1))
    write_plan(made, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == made
    assert made.gpus == 10 and made.disaggregated


def test_the_engine_is_written_as_vllm_flags() -> None:
    flags = pool().engine.flags
    assert flags[:4] == ("--tensor-parallel-size", "2", "--quantization", "fp8")
    assert "--num-gpu-blocks-override" in flags and "--enable-prefix-caching" in flags
    assert "--pipeline-parallel-size" not in flags


def test_fractions_of_a_device_are_rounded_up_to_whole_ones() -> None:
    small = pool().model_copy(update={"devices_per_replica": 1 / 7, "replicas": 8, "on_demand": 8})
    assert plan(small).gpus == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"replicas": 3}, "pools.mixed.replicas"),
        ({"needed": 9}, "pools.mixed.needed"),
        ({"role": "prefill"}, "pools"),
        ({"device": None}, "pools.mixed.device"),
        ({"replica_rps": -1.0}, "pools.mixed.replica_rps"),
        ({"gpus": 3}, "pools.mixed.gpus"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, object], key: str) -> None:
    document = plan().document()
    pools = document["pools"]
    assert isinstance(pools, dict)
    pools["mixed"] |= change
    with pytest.raises(PlannerError) as caught:
        plan_from(document)
    assert caught.value.key == key and caught.value.remedy


def test_a_plan_of_another_version_is_refused() -> None:
    with pytest.raises(PlannerError, match="plan_version"):
        plan_from(plan().document() | {"plan_version": 2})
