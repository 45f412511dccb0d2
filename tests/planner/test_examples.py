"""The worked examples in configs/: each question is asked as its file says, and its plan is put to the proof."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from planner import Engine, Workload, device, gpu_memory_report, plan_from, shape_of_model, write_plan
from planner.contexts import ContextLengths
from planner.plan import Plan
from planner.questions import question_file, question_of
from serving.settings import load
from tests.planner.command import ferry, tree_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUESTIONS = sorted(CONFIGS.glob("question.*.yaml"))
TODAY = "2026-11-25"


def test_there_are_six_examples_of_every_kind() -> None:
    names = "-".join(path.name.split(".")[1] for path in QUESTIONS)
    assert len(QUESTIONS) == 6
    assert all(kind in names for kind in ("chat", "rag", "reasoning", "l40s", "h100", "spot", "ascend"))


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.name)
def test_a_question_reads(path: Path) -> None:
    asked = question_of(question_file(yaml.safe_load(path.read_text()), file=path.name), CONFIGS)
    assert asked.devices and set(asked.slo.classes) == set(asked.workload.streams)
    assert path.name in path.read_text()  # the command that asks it


@pytest.mark.slow
@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.name)
def test_the_plan_holds_what_it_says(path: Path, tmp_path: Path) -> None:
    told = ferry("plan", "--question", str(path), "--json", "--today", TODAY, "--verify-top", "3")
    assert told.exit_code == 0, told.output
    tree = tree_of(told)
    planned, asked = plan_from(tree["plan"]), yaml.safe_load(path.read_text())
    assert {pool.device.partition(":")[0] for pool in planned.pools.values()} <= set(asked["system"])
    assert planned.gpus <= asked.get("total_gpus", 1000)
    assert planned.why and planned.prediction.probability > 0.2
    assert tree["safest"]["plan"]["prediction"]["probability"] >= planned.prediction.probability
    _fits(planned, question_of(question_file(asked, file=path.name), CONFIGS).workload)
    _deploys(planned, tmp_path)
    if not asked.get("maximise_rate"):
        _holds(planned, asked.get("workload"), tmp_path)
    if "spot" in asked:
        terms = [pool.spot_terms for pool in planned.pools.values() if pool.spot_terms]
        assert terms and {0.0, 30.0, 120.0} <= {notice.lead_s for notice in terms[0].notices}
        assert all(pool.on_demand >= asked["spot"]["least_on_demand"] for pool in planned.pools.values())


def _fits(planned: Plan, workload: Workload) -> None:
    """vLLM would find the planned blocks free: the report of `ferry plan memory` grants as many."""
    sample = workload.sample(0, 500)
    lengths = ContextLengths(requests=tuple(zip(sample.isl.tolist(), sample.osl.tolist(), strict=True)))
    for pool in planned.pools.values():
        engine = pool.engine
        report = gpu_memory_report(
            shape_of_model(planned.model),
            Engine(
                tp=engine.tensor_parallel_size,
                pp=engine.pipeline_parallel_size,
                ep=engine.tensor_parallel_size if engine.enable_expert_parallel else 1,
                quant=pool.weights,
                kv_dtype=engine.kv_cache_dtype,
                gpu_memory_utilization=engine.gpu_memory_utilization,
                max_model_len_tokens=engine.max_model_len,
                max_num_batched_tokens=engine.max_num_batched_tokens,
                max_num_seqs=engine.max_num_seqs,
                block_size_tokens=engine.block_size,
            ),
            lengths,
            memory_bytes=device(pool.device).memory_bytes,
        )
        assert report.fits and engine.num_gpu_blocks_override <= report.blocks


def _deploys(planned: Plan, folder: Path) -> None:
    """`ferry up --plan` would start it, as far as one can tell without a GPU."""
    if any(pool.devices_per_replica < 1 or pool.engine.data_parallel_size > 1 for pool in planned.pools.values()):
        return
    write_plan(planned, folder / "plan.yaml")
    settings = load(None, {"FERRY_MODEL": "somewhere"}, plan=folder / "plan.yaml")
    assert sum(pool.replicas for pool in settings.pools.values()) == sum(p.replicas for p in planned.pools.values())


def _holds(planned: Plan, workload: str | None, folder: Path) -> None:
    """Another sample of the same traffic meets the SLO too, or misses it by a hair."""
    write_plan(planned, folder / "plan.yaml")
    traffic = ("--workload", str(CONFIGS / workload)) if workload else ()
    told = ferry(
        "simulate", "--plan", str(folder / "plan.yaml"), *traffic, "--requests", "4000", "--seed", "7", "--json"
    )
    assert told.exit_code in (0, 3), told.output
    for name, one in tree_of(told)["classes"].items():
        assert one["within"] >= one["required"] - 0.03, (name, one)
