"""The planner's documents, data sets and traces as loads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.dataset import read_dataset
from loadtest.load import make_load
from loadtest.types import Job, LoadTestError
from planner import read_workload
from tests.loadtest.plans import PLAN
from tests.loadtest.test_traces import written

WORKLOAD = """streams:
  chat:
    lengths: {kind: lognormal, isl: {mean: 60, cv: 0.5, min: 12}, osl: {mean: 9, cv: 0.4}}
    arrivals: {kind: poisson, rate_rps: 20}
    prefix: {groups: 2, tokens: 8, share: 0.5}
  batch:
    lengths: {kind: constant, isl: 30, osl: 3}
    arrivals: {kind: constant, rate_rps: 5}
"""
SLO = """classes:
  chat: {ttft_ms: 500, attainment: 0.9, rate_rps: 20}
  batch: {e2e_ms: {p50: 1000}, rate_rps: 5}
"""
CLOSED = """streams:
  chat:
    lengths: {kind: constant, isl: 30, osl: 3}
    arrivals: {kind: closed_loop, concurrency: 3, think_s: 0.5}
"""
FROM_FILE = replace(PLAN, request_rate_rps=math.inf, requests=None, duration_s=20.0)


def prompt(job: Job) -> list[str]:
    words: list[str] = json.loads(job.body)["messages"][-1]["content"].split()
    return words


def test_a_workload_is_what_the_planner_samples(tmp_path: Path) -> None:
    path = written(tmp_path / "workload.yaml", WORKLOAD)
    plan = replace(FROM_FILE, workload=path, slo=written(tmp_path / "slo.yaml", SLO))
    jobs = make_load(plan).jobs
    sample = read_workload(path).sample(plan.seed, len(jobs))
    assert sample.arrival_s is not None
    assert [job.due_s for job in jobs] == sample.arrival_s.tolist() and jobs[-1].due_s < 20
    assert [len(prompt(job)) for job in jobs] == sample.isl.tolist()
    assert [json.loads(job.body)["max_completion_tokens"] for job in jobs] == sample.osl.tolist()
    assert [job.slo_class for job in jobs] == [sample.streams[stream] for stream in sample.stream]
    assert len(jobs) == pytest.approx(500, abs=4 * math.sqrt(500))
    beginnings: dict[int, set[str]] = {0: set(), 1: set()}
    for job, group in zip(jobs, sample.prefix.tolist(), strict=True):
        if group >= 0:
            beginnings[group].add(" ".join(prompt(job)[:8]))
    assert [len(some) for some in beginnings.values()] == [1, 1] and beginnings[0] != beginnings[1]
    assert jobs == make_load(plan).jobs != make_load(replace(plan, seed=4)).jobs


def test_a_workload_at_another_rate_keeps_its_mixture(tmp_path: Path) -> None:
    plan = replace(FROM_FILE, workload=written(tmp_path / "w.yaml", WORKLOAD), request_rate_rps=5.0, duration_s=200.0)
    jobs = make_load(plan).jobs
    assert len(jobs) == pytest.approx(1000, abs=4 * math.sqrt(1000))
    assert sum(job.slo_class == "batch" for job in jobs) == 200


def test_callers_of_a_closed_loop_are_sessions(tmp_path: Path) -> None:
    plan = replace(FROM_FILE, workload=written(tmp_path / "w.yaml", CLOSED), requests=7, duration_s=None)
    jobs = make_load(plan).jobs
    assert [(job.session, job.turn, job.due_s, job.think_s) for job in jobs[2:5]] == [
        (2, 0, 0.0, 0.0),
        (0, 1, None, 0.5),
        (1, 1, None, 0.5),
    ]
    assert not any(job.continues for job in jobs) and len(jobs) == 7
    with pytest.raises(LoadTestError, match="needs --num-prompts"):
        make_load(replace(plan, requests=None, duration_s=5.0))
    with pytest.raises(LoadTestError, match="closed loops"):
        make_load(replace(plan, request_rate_rps=5.0))


def test_refusals_of_the_planner_are_told_with_their_remedy(tmp_path: Path) -> None:
    slo = written(tmp_path / "slo.yaml", "classes: {rag: {ttft_ms: 5}}\n")
    plan = replace(FROM_FILE, workload=written(tmp_path / "w.yaml", WORKLOAD), slo=slo)
    with pytest.raises(LoadTestError, match="no such stream"):
        make_load(plan)
    with pytest.raises(LoadTestError, match="promises nothing to class batch, chat: it has rag"):
        make_load(replace(plan, request_rate_rps=1.0))
    with pytest.raises(LoadTestError, match="--workload and --trace are two loads"):
        make_load(replace(plan, trace=tmp_path / "t.csv"))


def test_without_streams_only_the_end_of_an_answer_can_be_promised(tmp_path: Path) -> None:
    slo = written(tmp_path / "slo.yaml", SLO)
    plan = replace(FROM_FILE, workload=written(tmp_path / "w.yaml", WORKLOAD), slo=slo, stream=False)
    with pytest.raises(LoadTestError, match=f"class chat of {slo} limits TTFT.* --no-stream"):
        make_load(plan)
    ours = replace(PLAN, slo=slo, slo_class="batch", stream=False)
    assert "stream" not in json.loads(make_load(ours).jobs[0].body)
    with pytest.raises(LoadTestError, match="--no-stream"):
        make_load(replace(ours, slo_class="chat"))


def mooncake(path: Path) -> Path:
    rows = [(0, 1030, [1, 2, 3]), (100, 1540, [1, 2, 4, 5]), (7000, 600, [9, 2])]
    lines = [{"timestamp": at, "input_length": isl, "output_length": 5, "hash_ids": ids} for at, isl, ids in rows]
    return written(path, "".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("by_planner", [False, True])
def test_equal_block_ids_of_a_trace_are_equal_text(tmp_path: Path, by_planner: bool) -> None:
    trace = mooncake(tmp_path / "m.jsonl")
    plan = replace(FROM_FILE, duration_s=None, requests=3)
    if by_planner:
        text = "streams: {chat: {trace: {path: m.jsonl, format: mooncake}}}\n"
        plan = replace(plan, workload=written(tmp_path / "w.yaml", text))
    else:
        plan = replace(plan, trace=trace)
    first, second, third = (prompt(job) for job in make_load(plan).jobs)
    assert [len(one) for one in (first, second, third)] == [1030, 1540, 600]
    assert first[:1024] == second[:1024] and first[1024:1030] != second[1024:1030]
    assert third[512:600] == first[512:600] and third[:512] != first[:512]


def conversations(path: Path, **plan: Any) -> list[Job]:
    return make_load(replace(PLAN, dataset=path, output_tokens=None, request_rate_rps=math.inf, **plan)).jobs


def test_conversations_of_a_data_set(tmp_path: Path) -> None:
    said = [("gpt", "left over"), ("human", "one?"), ("gpt", "a b c"), ("human", "two?")]
    turns = [{"from": who, "value": text} for who, text in said]
    rows = [{"id": "x", "conversations": turns}, {"conversations": turns[:1]}, {"conversations": 5}, 7]
    path = written(tmp_path / "sharegpt.json", json.dumps(rows))
    dataset = read_dataset(path)
    assert [(one.questions, one.answers) for one in dataset.dialogues] == [(("one?", "two?"), ("a b c", ""))]
    assert [why.partition(" of ")[0] for why in dataset.left_out] == ["entry 2", "entry 3", "entry 4"]
    jobs = conversations(path, requests=4, turns=2)
    assert [(job.session, job.turn, job.continues) for job in jobs] == [
        (0, 0, False), (0, 1, True), (1, 0, False), (1, 1, True)
    ]  # fmt: skip
    assert [json.loads(job.body)["max_completion_tokens"] for job in jobs[:2]] == [3, 128]
    whole = [job.session for job in conversations(path, requests=4, turns=0)]
    assert whole == [0, 0, 1, 1] and [job.session for job in conversations(path, requests=2, turns=1)] == [0, 1]


@pytest.mark.parametrize("rate_rps", [10.0, math.inf])
@pytest.mark.parametrize("turns", [0, 1, 3, 8])
def test_num_prompts_is_the_number_of_requests_whatever_the_turns(tmp_path: Path, turns: int, rate_rps: float) -> None:
    said = [{"role": role, "content": "so"} for role in ("user", "assistant") * 4]
    path = written(tmp_path / "data.jsonl", json.dumps({"messages": said}) + "\n")
    for dataset, longest in ((path, min(turns or 4, 4)), (None, max(turns, 1))):
        plan = replace(PLAN, dataset=dataset, turns=turns, requests=10, request_rate_rps=rate_rps)
        jobs = make_load(plan).jobs
        assert [(job.session, job.turn) for job in jobs] == [divmod(number, longest) for number in range(10)]
        most = make_load(replace(plan, requests=100_000, duration_s=5.0)).jobs if rate_rps == 10 else []
        assert not most or most == make_load(replace(plan, requests=None, duration_s=5.0)).jobs


def test_messages_and_prompts_by_the_line_in_a_seeded_order(tmp_path: Path) -> None:
    lines = [{"prompt": f"question {n}"} for n in range(8)]
    lines.append({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 8"}]})
    path = written(tmp_path / "data.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    jobs = conversations(path, requests=9)
    asked = [json.loads(job.body)["messages"] for job in jobs]
    assert {messages[-1]["content"] for messages in asked} == {f"question {n}" for n in range(9)}
    assert [messages[0]["content"] for messages in asked if len(messages) == 2] == ["Be brief."]
    assert [messages[-1]["content"] for messages in asked] != [f"question {n}" for n in range(9)]
    assert jobs == conversations(path, requests=9) != conversations(path, requests=9, seed=4)
    load = make_load(replace(PLAN, dataset=path))
    assert load.notes[0].startswith("line 10 of ")
    with pytest.raises(LoadTestError, match="holds no conversation: line 1"):
        read_dataset(written(tmp_path / "bad.jsonl", "nothing\n"))
    with pytest.raises(LoadTestError, match="cannot be read"):
        read_dataset(tmp_path / "missing.json")


def test_lengths_and_shared_beginnings_by_flags() -> None:
    jobs = make_load(replace(PLAN, input_words=100, range_ratio=0.2, requests=300)).jobs
    lengths = [len(prompt(job)) for job in jobs]
    assert min(lengths) == 80 and max(lengths) == 120
    jobs = make_load(replace(PLAN, input_words=200, input_cv=0.5, output_cv=0.5, output_tokens=50, requests=2000)).jobs
    lengths = [len(prompt(job)) for job in jobs]
    assert np.mean(lengths) == pytest.approx(200, rel=0.05)
    assert np.std(lengths) / np.mean(lengths) == pytest.approx(0.5, abs=0.05)
    jobs = make_load(replace(PLAN, prefix_tokens=6, prefix_groups=3, input_words=12)).jobs
    assert len({" ".join(prompt(job)[:6]) for job in jobs}) == 3
    assert len({" ".join(prompt(job)) for job in jobs}) == len(jobs) == 20
    with pytest.raises(LoadTestError, match="two laws"):
        make_load(replace(PLAN, input_cv=0.5, range_ratio=0.5))
    with pytest.raises(LoadTestError, match="below 1"):
        make_load(replace(PLAN, range_ratio=1.5))


def test_turns_follow_with_their_pauses() -> None:
    jobs = make_load(replace(PLAN, turns=3, think_s=2.0, think_cv=0.0, requests=12)).jobs
    assert len(jobs) == 12 and len({job.session for job in jobs}) == 4
    assert [(job.due_s is None, job.think_s, job.continues) for job in jobs[:3]] == [
        (False, 0.0, False),
        (True, 2.0, True),
        (True, 2.0, True),
    ]
