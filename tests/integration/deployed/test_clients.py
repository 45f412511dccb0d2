"""Unmodified SDK clients against a real deployment."""

from __future__ import annotations

import json

import anthropic
import httpx
import openai
import pytest

from tests.integration.conftest import Deployment, ferry

pytestmark = [pytest.mark.slow, pytest.mark.real]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]}
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def client(deployment: Deployment) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{deployment.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def claude(deployment: Deployment) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=deployment.base_url, api_key="none", max_retries=0)


def test_openai_streams_a_chat_with_usage(client: openai.OpenAI, deployment: Deployment) -> None:
    text, usage = "", None
    for chunk in client.chat.completions.create(
        model=deployment.model,
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=30,
    ):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert "Paris" in text
    assert usage is not None and usage.prompt_tokens == 37 and usage.completion_tokens == 8


def test_openai_streams_a_tool_call(client: openai.OpenAI, deployment: Deployment) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
    name = arguments = ""
    for chunk in client.chat.completions.create(
        model=deployment.model, messages=WEATHER, tools=tools, tool_choice="required", stream=True, temperature=0
    ):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "get_weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_openai_streams_a_json_schema_answer(client: openai.OpenAI, deployment: Deployment) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=deployment.model,
            messages=[{"role": "user", "content": "Give a person as JSON."}],
            response_format=form,
            stream=True,
            temperature=0,
        )
        if chunk.choices
    ]
    person = json.loads("".join(pieces))
    assert isinstance(person["name"], str) and 0 <= person["age"] <= 120


def test_anthropic_streams_a_chat_a_tool_call_and_json(claude: anthropic.Anthropic, deployment: Deployment) -> None:
    greedy = {"extra_body": {"temperature": 0}}
    with claude.messages.stream(model=deployment.model, max_tokens=30, messages=QUESTION, **greedy) as stream:
        assert "Paris" in "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens > 0
    tools = [{"name": "get_weather", "description": "The weather", "input_schema": CITY}]
    with claude.messages.stream(
        model=deployment.model, max_tokens=200, messages=WEATHER, tools=tools, tool_choice={"type": "any"}, **greedy
    ) as stream:
        call = next(block for block in stream.get_final_message().content if block.type == "tool_use")
    assert call.name == "get_weather" and isinstance(call.input["city"], str)
    with claude.messages.stream(
        model=deployment.model,
        max_tokens=200,
        messages=[{"role": "user", "content": "Give a person as JSON."}],
        extra_body={"temperature": 0, "output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
    ) as stream:
        person = json.loads("".join(stream.text_stream))
    assert set(person) == {"name", "age"}
    assert claude.messages.count_tokens(model=deployment.model, messages=QUESTION).input_tokens == 37


def test_n_seeds_logprobs_and_stop_strings(client: openai.OpenAI, deployment: Deployment) -> None:
    def sample() -> list[tuple[str, int]]:
        answer = client.chat.completions.create(
            model=deployment.model,
            messages=[{"role": "user", "content": "Tell a joke about cats, please, and about dogs."}],
            n=3,
            seed=5,
            temperature=0.8,
            max_tokens=20,
            logprobs=True,
            top_logprobs=2,
        )
        return [(c.message.content or "", len(c.logprobs.content)) for c in answer.choices]

    first, again = sample(), sample()
    assert first == again, "a seed fixes the draws"
    assert len({text for text, _ in first}) == 3 and all(0 < count <= 20 for _, count in first)
    stopped = client.completions.create(
        model=deployment.model,
        prompt="Once upon a time there was a little dragon who lived in a",
        max_tokens=60,
        temperature=0,
        stop=["."],
    )
    assert stopped.choices[0].finish_reason == "stop" and "." not in stopped.choices[0].text


def test_responses_route(client: openai.OpenAI, deployment: Deployment) -> None:
    arguments = {"model": deployment.model, "input": QUESTION[0]["content"], "temperature": 0, "max_output_tokens": 20}
    whole = client.responses.create(**arguments)
    events = list(client.responses.create(**arguments, stream=True))
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert whole.output_text == streamed and "Paris" in streamed
    assert events[-1].type == "response.completed"


def test_tokenize_round_trip_and_models(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.base_url, timeout=10) as http:
        tokens = http.post("/tokenize", json={"model": deployment.model, "prompt": "Ferry moves."}).json()["tokens"]
        back = http.post("/detokenize", json={"model": deployment.model, "tokens": tokens}).json()["prompt"]
        assert back.endswith("Ferry moves.")
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == [deployment.model]
        assert http.get("/version").status_code == http.get("/health").status_code == 200
        assert http.get("/ready").json() == {"ready": True}


def test_wrong_model_is_404_in_the_sdk_s_shape(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert refused.value.code == "model_not_found" and refused.value.param == "model"
    with pytest.raises(anthropic.NotFoundError) as refused_too:
        claude.messages.create(model="no-such-model", max_tokens=5, messages=QUESTION)
    assert refused_too.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("path", ["/invocations", "/inference/v1/generate", "/scale_elastic_ep", "/docs", "/nope"])
def test_routes_that_ferry_does_not_serve_are_shut(deployment: Deployment, path: str) -> None:
    answer = httpx.post(f"{deployment.base_url}{path}", json={}, timeout=10)
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"


def test_prompt_kv_came_over_nixl(client: openai.OpenAI, deployment: Deployment) -> None:
    def counters() -> tuple[float, float, float]:
        return (
            deployment.metric("vllm:external_prefix_cache_hits_total", pool="decode"),
            deployment.metric("vllm:nixl_bytes_transferred_sum", pool="decode"),
            deployment.metric("ferry:moves_total", reason="prefill_done", mode="kv"),
        )

    hits, sent_bytes, moves = counters()
    story = "A lighthouse keeper counts ships. " * 30
    answer = client.completions.create(model=deployment.model, prompt=story, max_tokens=8, temperature=0)
    hits_after, bytes_after, moves_after = counters()
    assert hits_after - hits == answer.usage.prompt_tokens, "every prompt token's KV was pulled"
    assert bytes_after > sent_bytes and moves_after == moves + 1


def test_status_shows_both_pools(deployment: Deployment) -> None:
    replicas = deployment.status()["replicas"]
    assert [(r["pool"], r["role"], r["state"]) for r in replicas] == [
        ("decode", "decode", "ready"),
        ("prefill", "prefill", "ready"),
    ]
    table = ferry("status", "--port", str(deployment.port))
    assert table.returncode == 0 and "prefill" in table.stdout and "decode" in table.stdout


def test_chat_command_answers(deployment: Deployment) -> None:
    said = ferry("chat", "What is the capital of France?", "--port", str(deployment.port))
    assert said.returncode == 0 and "Paris" in said.stdout
