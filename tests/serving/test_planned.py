"""What a plan becomes when it is deployed, and what contradicts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner import Plan, PoolPlan, write_plan
from serving.cli import app
from serving.errors import ConfigError
from serving.planned import settings_of_plan
from serving.settings import Settings, load
from serving.types import PoolRole
from tests.planner.plans import plan, pool


def loaded(
    folder: Path, planned: Plan, config: str | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    write_plan(planned, folder / "plan.yaml")
    if config is not None:
        (folder / "ferry.yaml").write_text(config)
    return load(folder / "ferry.yaml" if config is not None else None, environ or {}, plan=folder / "plan.yaml")


def changed(of: PoolPlan, **engine: object) -> PoolPlan:
    return of.model_copy(update={"engine": of.engine.model_copy(update=engine)})


def test_pools_limits_and_model_are_the_plans(tmp_path: Path) -> None:
    planned = plan(pool("prefill", replicas=1), pool("decode", replicas=3))
    settings = loaded(tmp_path, planned)
    assert settings.model == planned.model
    assert {name: (p.role, p.replicas) for name, p in settings.pools.items()} == {
        "prefill": (PoolRole.PREFILL, 1),
        "decode": (PoolRole.DECODE, 3),
    }
    for name, of in planned.pools.items():
        engine = settings.engine_of(name)
        assert (engine.tensor_parallel_size, engine.pipeline_parallel_size) == (2, 1)
        assert engine.max_num_seqs == of.engine.max_num_seqs and engine.max_model_len == of.engine.max_model_len
        assert engine.max_num_batched_tokens == of.engine.max_num_batched_tokens
        assert engine.block_size == 16 and engine.gpu_memory_utilization == of.engine.gpu_memory_utilization
        assert engine.args["num_gpu_blocks_override"] == 20_000 and engine.args["quantization"] == "fp8"


def test_every_word_of_the_plan_reaches_the_engine_once() -> None:
    planned = plan()
    engine = settings_of_plan(planned)["pools"]["mixed"]["engine"]
    own = {name: value for name, value in engine.items() if name != "args"}
    assert not own.keys() & engine["args"].keys()
    assert planned.pools["mixed"].engine.arguments.items() <= (own | engine["args"]).items()


def test_spot_replicas_are_a_pool_of_their_own() -> None:
    pools = settings_of_plan(plan(pool(replicas=5, spot=2)))["pools"]
    assert {name: one["replicas"] for name, one in pools.items()} == {"mixed": 3, "mixed-spot": 2}
    assert {
        name: one["replicas"] for name, one in settings_of_plan(plan(pool(replicas=2, spot=2)))["pools"].items()
    } == {"mixed-spot": 2}


def test_a_file_adds_what_the_plan_leaves_open_and_may_repeat_it(tmp_path: Path) -> None:
    config = """
model: a/model
http: {port: 9001}
pools: {mixed: {replicas: 2, resources: {h100: 1}, engine: {enforce_eager: true, args: {seed: 3}}}}
"""
    settings = loaded(tmp_path, plan(), config, {"FERRY_GATEWAY__REPLICAS": "2"})
    assert settings.http.port == 9001 and settings.gateway.replicas == 2
    assert settings.pools["mixed"].resources == {"h100": 1} and settings.pools["mixed"].replicas == 2
    engine = settings.engine_of("mixed")
    assert engine.enforce_eager and engine.args["seed"] == 3 and engine.args["quantization"] == "fp8"


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("model: other/model", "model", "'other/model'"),
        ("pools: {mixed: {replicas: 7}}", "pools.mixed.replicas", "7"),
        ("pools: {mixed: {role: decode}}", "pools.mixed.role", "decode"),
        ("pools: {mixed: {engine: {tensor_parallel_size: 4}}}", "pools.mixed.engine.tensor_parallel_size", "4"),
        ("pools: {mixed: {engine: {args: {quantization: awq}}}}", "pools.mixed.engine.args.quantization", "awq"),
        ("pools: {decode: {role: decode}}", "pools.decode", "no such pool"),
    ],
)
def test_a_file_that_contradicts_the_plan_is_refused(tmp_path: Path, text: str, key: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, plan(), text)
    assert caught.value.field == key
    assert str(tmp_path / "ferry.yaml") in caught.value.message and "plan.yaml" in caught.value.message
    assert told in caught.value.message and caught.value.remedy


def test_what_ferry_cannot_serve_is_refused() -> None:
    ranks = changed(pool(), data_parallel_size=8, enable_expert_parallel=True)
    with pytest.raises(ConfigError, match="8 data-parallel ranks"):
        settings_of_plan(plan(ranks))
    slice_ = pool().model_copy(update={"devices_per_replica": 0.25, "device": "l4:1/4"})
    with pytest.raises(ConfigError, match="part of a device"):
        settings_of_plan(plan(slice_))


def test_packed_weights_need_the_checkpoint_that_has_them(tmp_path: Path) -> None:
    packed = pool().model_copy(update={"checkpoint": "an int4_awq checkpoint of a/model", "weights": "int4_awq"})
    with pytest.raises(ConfigError, match="int4_awq") as caught:
        settings_of_plan(plan(packed))
    assert "--model" in caught.value.remedy
    assert settings_of_plan(plan(packed), model="b/model-awq")["model"] == "b/model-awq"
    assert loaded(tmp_path, plan(packed), environ={"FERRY_MODEL": "b/model-awq"}).model == "b/model-awq"


def test_ferry_up_tells_of_a_bad_plan_before_anything_starts(tmp_path: Path) -> None:
    def up(*arguments: str) -> str:
        told = CliRunner(env={"FERRY_HOME": str(tmp_path)}).invoke(app, ["up", *arguments])
        assert told.exit_code == 2 and "Traceback" not in told.output, told.output
        return told.output

    assert "cannot be read" in up("--plan", str(tmp_path / "none.yaml"))
    odd = tmp_path / "odd.yaml"
    odd.write_text("plan_version: 1\npoools: {}\n")
    assert "poools" in up("--plan", str(odd))
    good, config = tmp_path / "plan.yaml", tmp_path / "ferry.yaml"
    write_plan(plan(), good)
    config.write_text("pools: {mixed: {replicas: 7}}")
    assert "pools.mixed.replicas is 7" in up("--plan", str(good), "--config", str(config))
