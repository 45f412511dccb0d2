"""results.json of `ferry load validate` as a profile: what a planned deployment was measured to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from planner.documents import validated
from planner.profile import Profile
from planner.reader import Reader
from planner.types import PlannerError

FORMAT = "ferry-results/1"
INVALID = "INVALID"


def profile_of_results(data: Mapping[str, object], *, file: str) -> Profile:
    """The runs that say something of the server: answered whole, and not limited by the client.

    Raises PlannerError for another file, for plans of several pools, whose shares in a latency nobody knows, and where
    no run is left.
    """
    if data.get("format") != FORMAT:
        remedy = "give the results.json of `ferry load validate`"
        raise PlannerError(file, "format", data.get("format"), "not the results of a validation", remedy)
    plan = Reader(config=data, file=file).section("plan")
    pools = plan.section("pools").config
    if len(pools) != 1:
        problem = "one latency is made of several pools' parts"
        raise PlannerError(file, "plan.pools", ", ".join(map(str, pools)), problem, "profile each pool's engine alone")
    (name,) = pools
    points = list(_points(data, file))
    if not points:
        problem = "no run was answered whole without the client being the limit"
        raise PlannerError(file, "points", 0, problem, "validate again, with less load")
    pool = plan.section("pools").section(str(name)).config
    engine = plan.section("pools").section(str(name)).section("engine").config
    return validated(Profile, _tree(data, plan.config, pool, engine, points), file=file)


def _tree(
    data: Mapping[str, Any],
    plan: Mapping[str, Any],
    pool: Mapping[str, Any],
    engine: Mapping[str, Any],
    points: list[dict[str, Any]],
) -> dict[str, Any]:
    versions = data.get("versions") or {}
    tp, pp = engine.get("tensor_parallel_size", 1), engine.get("pipeline_parallel_size", 1)
    return {
        "model": plan.get("model"),
        "system": pool.get("device"),
        "measured": data.get("date"),
        "engine_version": str(versions.get("server", "")),
        "tp": tp,
        "pp": pp,
        "dp": engine.get("data_parallel_size", 1),
        "ep": tp if engine.get("enable_expert_parallel") else 1,
        "replicas": pool.get("replicas"),
        "quant": pool.get("weights"),
        "kv_cache_dtype": engine.get("kv_cache_dtype"),
        "max_num_batched_tokens": engine.get("max_num_batched_tokens"),
        "max_num_seqs": engine.get("max_num_seqs"),
        "kv_blocks": engine.get("num_gpu_blocks_override"),
        "block_size_tokens": engine.get("block_size"),
        "points": points,
    }


def _points(data: Mapping[str, Any], file: str) -> Iterator[dict[str, Any]]:
    found = data.get("points")
    if not isinstance(found, list):
        raise PlannerError(file, "points", found, "a list of runs is needed", "validate again")
    for point in found:
        measured = point.get("measured") or {}
        whole = point.get("verdict") != INVALID and not point.get("failed")
        if whole and measured.get("ttft_ms") and measured.get("isl") and measured.get("osl"):
            yield dict(measured)
