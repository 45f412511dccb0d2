"""The exactness matrix at the HTTP door: vLLM's routes over real engines answer as if nothing had moved.

The gateway's application runs in this process; its contexts are cut as in test_exact_moves. Answers are compared in
every field, usage included, but for ids and times, which are drawn anew for each request. Deltas that follow each other
are joined before: when the front end falls behind its engines it sends two tokens in one event, moves or not. Floats
are logprobs; after a replay they have its tolerance.

That the moves took place is checked on both sides: in the client that makes them, and in what the gateway tells those
who send `X-Ferry-Moves: 1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter

from serving.gateway.http import Doors, build, front_end_arguments
from serving.settings import GatewaySettings
from tests.integration.answers import Answer, differences, read, read_whole
from tests.integration.engines import Hosts, model_files
from tests.integration.moving import DEPTHS, TOLERANCE, Depth, MovingClient, moving, runs

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SETTINGS = GatewaySettings(args={"tool_strict_level": "parameter"})
MODEL = "smollm2-135m"
TOKENS = 24
QUESTION = [{"role": "user", "content": "Why do ferries cross rivers at night?"}]
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
CHAT: dict[str, Any] = {"messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
MESSAGE: dict[str, Any] = {"messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | STREAMED | {"logprobs": True, "top_logprobs": 2}),
    "chat whole": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    "tool call": (
        "/v1/chat/completions",
        STREAMED
        | {
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}],
            "tool_choice": "required",
            "max_tokens": 60,
            "temperature": 0,
        },
    ),
    "json": (
        "/v1/chat/completions",
        STREAMED
        | {
            "messages": [{"role": "user", "content": "Give a person as JSON."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON, "strict": True},
            },
            "max_tokens": 60,
            "temperature": 0,
        },
    ),
    "three of them": (
        "/v1/chat/completions",
        CHAT | STREAMED | {"n": 3, "seed": 5, "temperature": 0.9, "ignore_eos": True},
    ),
    "completion": ("/v1/completions", STREAMED | {"prompt": "A ferry", "max_tokens": TOKENS, "temperature": 0}),
    "responses": (
        "/v1/responses",
        {"input": QUESTION[0]["content"], "max_output_tokens": TOKENS, "temperature": 0, "stream": True},
    ),
    "messages": ("/v1/messages", MESSAGE | {"stream": True}),
    "messages whole": ("/v1/messages", MESSAGE),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(running: Hosts) -> AsyncIterator[tuple[MovingClient, httpx.AsyncClient]]:
    """The client of the engines, and a client of the gateway over it."""
    async with moving(running) as (client, llm):
        doors = Doors(
            wait_until_servable=client.wait_until_servable,
            not_ready_because=lambda: None,
            metrics=_no_metrics,
            engine_wait_s=10,
            admin=APIRouter(),
        )
        app = await build(llm, front_end_arguments(model_files(), SETTINGS), doors)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=120) as http:
            yield client, http


async def _no_metrics() -> str:
    raise AssertionError("nobody asks for metrics here")


async def ask(http: httpx.AsyncClient, case: str) -> Answer:
    path, body = CASES[case]
    answer = await http.post(path, json={"model": MODEL} | body, headers={"X-Ferry-Moves": "1"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream" if "stream" in body else "application/json")
    return read(answer.text) if "stream" in body else read_whole(answer.text)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("case", CASES)
async def test_moved_answer_equals_unmoved(
    opened: tuple[MovingClient, httpx.AsyncClient], case: str, depth: Depth
) -> None:
    client, http = opened
    unmoved = await client.run_cut(lambda: ask(http, case))
    contexts = CASES[case][1].get("n", 1)
    length = unmoved.output_tokens // contexts
    print(f"{case}: {unmoved.usage}, {str(unmoved.body)[:500]}")
    assert unmoved.moves["moves"] == 0 and not client.moved and not unmoved.comments
    assert length > 4, "there is something to cut"
    middle = length // 2
    wrong = []
    for mode, cuts in runs([(1,), (2,), (middle,), (length - 1,), (2, middle + 1)], depth):
        moved = await client.run_cut(lambda: ask(http, case), *cuts, mode=mode)
        wrong += [f"{mode}, cut at {cuts}: {found}" for found in differences(moved.body, unmoved.body, TOLERANCE[mode])]
        assert client.moved == Counter(dict.fromkeys(cuts, contexts)), f"cut at {cuts}: moved at {client.moved}"
        assert moved.moves["moves"] == moved.moves[mode] == len(cuts) * contexts, moved.moves
        if "stream" in CASES[case][1]:
            assert Counter(moved.comments) == Counter({(mode, cut): contexts for cut in cuts}), moved.comments
    print(*wrong, sep="\n")
    assert not wrong
