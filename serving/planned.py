"""From a plan.yaml to settings: pools, engine limits and the model are the plan's, the rest is the operator's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner import EnginePlan, Plan, PlannerError, PoolPlan, read_plan
from serving.errors import ConfigError

# The plan's words that are settings of their own; all others go to vLLM as they are.
OWN_WORDS = frozenset(
    {
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "dtype",
        "block_size",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "pipeline_parallel_size",
    }
)
# Spot and on-demand replicas are pools of their own, so that each can be placed on its own nodes.
SPOT_SUFFIX = "-spot"


def planned_settings(path: Path, *, model: str | None = None) -> dict[str, Any]:
    """As `settings_of_plan`, of the plan in a file.

    Raises:
        ConfigError: also for a plan that cannot be read.
    """
    try:
        plan = read_plan(path)
    except PlannerError as error:
        raise ConfigError(str(error), remedy=error.remedy, field="plan") from None
    return settings_of_plan(plan, model=model)


def settings_of_plan(plan: Plan, *, model: str | None = None) -> dict[str, Any]:
    """The settings that a plan decides, as the tree that a settings file would hold.

    `model` names the checkpoint to serve where the plan's own name is none: a plan is for a shape.

    Raises:
        ConfigError: for a plan that Ferry cannot serve, or whose weights are not those of the named model.
    """
    pools: dict[str, Any] = {}
    for name, pool in plan.pools.items():
        _check(name, pool, plan, model)
        for part, replicas in ((name, pool.on_demand), (f"{name}{SPOT_SUFFIX}", pool.spot)):
            if replicas:
                pools[part] = {"role": pool.role, "replicas": replicas, "engine": _engine(pool.engine)}
    return {"model": model or plan.model, "pools": pools}


def joined(
    config: Mapping[str, Any], planned: Mapping[str, Any], *, config_file: str, plan_file: str
) -> dict[str, Any]:
    """Both trees as one.

    Raises:
        ConfigError: where the file says something else than the plan, or names a pool that the plan does not have.
    """
    tree = dict(planned)
    own_pools = config.get("pools")
    if planned and isinstance(own_pools, Mapping):
        for name in own_pools:
            if name not in planned["pools"]:
                raise ConfigError(
                    f"{config_file}: pools.{name}: {plan_file} plans no such pool",
                    remedy=f"leave it out, or use a name of the plan: {', '.join(planned['pools'])}",
                    field=f"pools.{name}",
                )
    for place, value in _leaves(config):
        found = _at(planned, place)
        if found is not None and found != value:
            key = ".".join(place)
            raise ConfigError(
                f"{config_file}: {key} is {value!r}, but {plan_file} plans {found!r}",
                remedy=f"leave {key} out of {config_file}, or plan again",
                field=key,
            )
        tree = _with(tree, place, value)
    return tree


def _check(name: str, pool: PoolPlan, plan: Plan, model: str | None) -> None:
    if pool.engine.data_parallel_size > 1:
        raise ConfigError(
            f"the plan's pool {name} has {pool.engine.data_parallel_size} data-parallel ranks in one engine,"
            " and Ferry starts one rank per engine",
            remedy="plan again without expert parallelism beyond one rank, or on devices with more memory",
            field=f"pools.{name}.engine.data_parallel_size",
        )
    if pool.devices_per_replica < 1:
        raise ConfigError(
            f"the plan's pool {name} runs on a part of a device ({pool.device}), which Ferry does not cut",
            remedy="plan again with whole devices: --no-fractions",
            field=f"pools.{name}.device",
        )
    if pool.checkpoint is not None and model is None:
        raise ConfigError(
            f"the plan's pool {name} needs weights in {pool.weights}, which {plan.model} is not: {pool.checkpoint}",
            remedy="name the checkpoint with --model",
            field=f"pools.{name}.checkpoint",
        )


def _engine(engine: EnginePlan) -> dict[str, Any]:
    own: dict[str, Any] = {name: value for name, value in engine.model_dump().items() if name in OWN_WORDS}
    return own | {"args": {name: value for name, value in engine.arguments.items() if name not in OWN_WORDS}}


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no mapping, and every empty mapping, with the keys that lead to it."""
    for key, value in tree.items():
        place = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        else:
            yield place, value


def _at(tree: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = tree
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _with(tree: Mapping[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The tree with `value` at a place."""
    first, *rest = place
    below = tree.get(first)
    if not rest:
        return {**tree, first: value}
    return {**tree, first: _with(below if isinstance(below, Mapping) else {}, tuple(rest), value)}
