"""Turns that carry what was said: each next request holds the answers that really came."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loadtest.conversation import NO_ANSWER, Conversations
from loadtest.jobs import as_body, body_tree
from loadtest.load import load_for, make_load
from loadtest.runner import run
from loadtest.spec import RunSpec
from loadtest.types import Flag, Job, Limits, Outcome, Target
from tests.loadtest.builders import delta, stream
from tests.loadtest.model_server import says, serving
from tests.loadtest.plans import CHAT, PLAN
from tests.loadtest.test_framing import pieces_of

TALK = replace(PLAN, turns=3, requests=12, input_words=5, request_rate_rps=50.0, tokenizer="endpoint")


def turn(number: int, text: str, endpoint: str = CHAT) -> Job:
    body = as_body(body_tree(endpoint, "m", text, 4, stream=True))
    return Job(number, body, session=1, turn=number, continues=number > 0)


def heard(talk: Conversations, job: Job, *events: Any) -> None:
    reads = stream(*((float(at), one) for at, one in enumerate(events)))
    talk.ended(job, [round(at_ms) for at_ms, _ in reads], [piece for _, piece in reads])


def test_each_request_holds_the_received_answers() -> None:
    def answer(tree: dict[str, Any]) -> list[dict[str, Any]]:
        asked = tree["messages"][-1]["content"].split()[0]
        return [delta(reasoning_content="hm"), delta(content=f"about {asked}"), delta(content=" so"), delta("stop")]

    with serving(answer) as server:
        target = Target(server.base_url)
        load = load_for(replace(TALK, input_words=20), target)
        result = run(RunSpec(target, load.jobs, Limits(timeout_s=10)))
    assert [one.outcome for one in result.records] == [Outcome.OK] * 12
    by_turns = {len(body["messages"]): 0 for body in server.bodies}
    assert sorted(by_turns) == [1, 3, 5] and len(server.bodies) == 12
    questions: dict[int, list[str]] = {job.session: [] for job in load.jobs}
    for job in load.jobs:
        questions[job.session].append(json.loads(job.body)["messages"][0]["content"])
    asked = [[message["content"] for message in body["messages"]] for body in server.bodies]
    for one, two, three in questions.values():
        said = [f"about {text.split()[0]} so" for text in (one, two)]
        assert [one] in asked and [one, said[0], two] in asked and [one, said[0], two, said[1], three] in asked


def test_first_turns_are_counted_by_the_server_as_planned_and_a_miscount_is_flagged() -> None:
    with serving(says("a", "b")) as server:
        target = Target(server.base_url)
        load = load_for(replace(TALK, input_words=20), target)
        spoilt = [replace(job, prompt_tokens=21) if job.number == 0 else job for job in load.jobs]
        result = run(RunSpec(target, spoilt, Limits(timeout_s=10)))
    flagged = [one.number for one in result.records if Flag.PROMPT_MISCOUNTED in one.flags]
    assert flagged == [0]
    assert {one.prompt_tokens for one in result.records if one.turn == 0} == {20}


def test_headers_models_tools_and_formats_arrive() -> None:
    plan = replace(
        PLAN,
        models=(("base", 1.0), ("lora", 1.0)),
        tenants=(("acme", 1.0), ("zeta", 1.0)),
        tenant_header="X-Tenant-Id",
        class_header="X-Class",
        slo_class="chat",
        request_rate_rps=200.0,
        extra={"tools": [{"type": "function", "function": {"name": "f"}}], "response_format": {"type": "json_object"}},
    )
    with serving(says("a")) as server:
        result = run(RunSpec(Target(server.base_url), make_load(plan).jobs, Limits(timeout_s=10)))
    assert all(one.ok and one.slo_class == "chat" for one in result.records)
    assert {body["model"] for body in server.bodies} == {"base", "lora"}
    assert {headers["X-Tenant-Id"] for _, headers in server.asked} == {"acme", "zeta"}
    assert {headers["X-Class"] for _, headers in server.asked} == {"chat"}
    assert all(body["tools"] and body["response_format"] for body in server.bodies)


def test_a_tool_call_is_answered_by_the_next_turn() -> None:
    talk = Conversations([turn(0, "weather?"), turn(1, "rain")])
    heard(
        talk,
        turn(0, "weather?"),
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        delta("tool_calls"),
        "[DONE]",
    )
    messages = json.loads(talk.body(turn(1, "rain")))["messages"]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    assert messages == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


def test_text_completions_grow() -> None:
    first, second = turn(0, "one", "/v1/completions"), turn(1, "two", "/v1/completions")
    talk = Conversations([first, second])
    heard(talk, first, {"choices": [{"index": 0, "text": " a b", "finish_reason": "stop"}]}, "[DONE]")
    assert json.loads(talk.body(second))["prompt"] == "one a b two"


def test_where_no_answer_came_the_talk_goes_on() -> None:
    talk = Conversations([turn(0, "one"), turn(1, "two")])
    talk.ended(turn(0, "one"), [], [])
    assert [one["content"] for one in json.loads(talk.body(turn(1, "two")))["messages"]] == ["one", NO_ANSWER, "two"]


def test_answers_are_heard_early_or_late_to_the_same_effect() -> None:
    bodies = []
    for early in (False, True):
        talk = Conversations([turn(0, "one"), turn(1, "two")])
        heard(talk, turn(0, "one"), delta(content="yes"), delta("stop"), "[DONE]")
        if early:
            assert talk.hear_one() and not talk.hear_one()
        bodies.append(talk.body(turn(1, "two")))
        assert not talk.carry(1)
    assert bodies[0] == bodies[1]


def test_single_turns_are_not_kept() -> None:
    talk = Conversations([turn(0, "one")])
    talk.ended(turn(0, "one"), [1], [b"x"])
    assert not talk.hear_one() and not talk.carry(1)


@given(st.binary(max_size=200), st.lists(st.integers(0)))
def test_no_bytes_of_an_answer_end_the_conversation(data: bytes, cuts: list[int]) -> None:
    reads = stream((1.0, delta(content="yes")), (2.0, "[DONE]"))
    for garbage in (data, reads[0][1] + data):
        talk = Conversations([turn(0, "one"), turn(1, "two")])
        pieces = pieces_of(garbage, cuts)
        talk.ended(turn(0, "one"), list(range(len(pieces))), pieces)
        assert len(json.loads(talk.body(turn(1, "two")))["messages"]) == 3
