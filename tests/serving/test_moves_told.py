"""Moves told to clients through vLLM's real application: on every route, streamed or not, to SDKs too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from serving.gateway.sse import EventSplitter, data_of
from tests.fakes import until
from tests.serving.gateways import BEGIN, MODEL, Gateways, words, write_model

TOKENS, BEFORE = 12, 4
ASK = {"X-Ferry-Moves": "1"}
MESSAGES = [{"role": "user", "content": "w9"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": TOKENS},
    "/v1/completions": {"prompt": f"{BEGIN} w8 w9", "max_tokens": TOKENS},
    "/v1/responses": {"input": "w9", "max_output_tokens": TOKENS},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": TOKENS},
}
OPENAI_STREAM = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Gateways]:
    """A prefill engine that every prompt goes through, a decode engine, one gateway."""
    cluster = Gateways(write_model(tmp_path), disaggregate_from_tokens=1)
    await cluster.start("p1", "d1")
    await cluster.open("g")
    yield cluster
    await cluster.close()


async def moved(cluster: Gateways, request: Coroutine[Any, Any, Any], contexts: int = 1) -> Any:
    """The answer to a request whose contexts hop from prefill to decode, and then move as their engine drains."""
    pool = cluster.pool("g")
    asking = asyncio.create_task(request)
    await until(lambda: asking.done() or len(cluster.engines["p1"].running) == contexts)
    cluster.engines["p1"].allow(contexts)
    await until(lambda: asking.done() or len(cluster.engines["d1"].running) == contexts)
    cluster.engines["d1"].allow(contexts * (BEFORE - 1))
    await until(lambda: asking.done() or sum(c["output_tokens"] for c in pool.contexts()) == contexts * BEFORE)
    await cluster.start("d2")
    await until(lambda: len(pool.engines.candidates()) == 3)
    await cluster.controller.drain("d1")
    await until(lambda: sum(method == "hand_off" for method, _ in cluster.engines["d1"].calls) == contexts)
    cluster.allow(10 * TOKENS)
    return await asyncio.wait_for(asking, 20)


def client_of(cluster: Gateways) -> httpx.AsyncClient:
    return cluster.clients["g"]


def body(path: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, **ROUTES[path], **more}


def check_summary(ferry: dict[str, Any], contexts: int = 1) -> None:
    gaps_ms = ferry.pop("gap_ms")
    assert ferry == {"moves": 2 * contexts, "kv": 2 * contexts, "replay": 0, "recomputed_tokens": 0}
    assert len(gaps_ms) == 2 * contexts and all(0 < gap_ms < 20_000 for gap_ms in gaps_ms)


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_a_whole_answer_tells_its_moves(cluster: Gateways, path: str) -> None:
    answer = await moved(cluster, client_of(cluster).post(path, json=body(path), headers=ASK))
    assert answer.status_code == 200 and int(answer.headers["content-length"]) == len(answer.content)
    assert json.dumps(words(TOKENS)) in answer.text
    check_summary(answer.json()["usage"]["ferry"])


def texts(event: bytes) -> str:
    """The text that a stream's event adds."""
    data = data_of(event)
    if not data or data == b"[DONE]":
        return ""
    found = json.loads(data)
    choice = found["choices"][0] if found.get("choices") else {}
    delta = found.get("delta", choice.get("delta", {}))
    if isinstance(delta, str):
        return delta
    return str(choice.get("text") or delta.get("content") or delta.get("text") or "")


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_a_stream_tells_each_move_in_time_and_all_at_its_end(cluster: Gateways, path: str) -> None:
    options = OPENAI_STREAM if "completions" in path else {}
    asking = client_of(cluster).post(path, json=body(path, stream=True, **options), headers=ASK)
    events = EventSplitter().feed((await moved(cluster, asking)).content)
    told = [n for n, event in enumerate(events) if event.startswith(b": ")]
    hop, drain = (events[n].decode().strip() for n in told)
    assert hop.startswith(": ferry move mode=kv reason=prefill_done at_token=1 gap_ms=")
    assert drain.startswith(f": ferry move mode=kv reason=drain at_token={BEFORE + 1} gap_ms=")
    assert "".join(map(texts, events)) == words(TOKENS)
    before = "".join(map(texts, events[: told[1]]))
    assert words(BEFORE + 1).startswith(before), "a token after the move came before the news of it"
    usages = [json.loads(data_of(event)) for event in events if b'"ferry"' in event]
    (final,) = usages
    check_summary(final.get("response", final)["usage"]["ferry"])


async def test_the_contexts_of_one_request_are_told_together(cluster: Gateways) -> None:
    path = "/v1/chat/completions"
    asking = client_of(cluster).post(path, json=body(path, n=2), headers=ASK)
    answer = (await moved(cluster, asking, contexts=2)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [words(TOKENS)] * 2
    check_summary(answer["usage"]["ferry"], contexts=2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_who_does_not_ask_hears_nothing(cluster: Gateways, path: str, stream: bool) -> None:
    options = OPENAI_STREAM if stream and "completions" in path else {}
    answer = await moved(cluster, client_of(cluster).post(path, json=body(path, stream=stream, **options)))
    assert answer.status_code == 200 and "ferry" not in answer.text and "usage" in answer.text


async def test_an_openai_client_reads_on_and_finds_the_summary(cluster: Gateways) -> None:
    client = openai.AsyncOpenAI(base_url="http://g/v1", api_key="none", http_client=client_of(cluster), max_retries=0)

    async def ask() -> tuple[str, Any]:
        text, usage = "", None
        async for part in await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=ASK,
        ):
            text += (part.choices[0].delta.content or "") if part.choices else ""
            usage = part.usage or usage
        return text, usage

    text, usage = await moved(cluster, ask())
    assert text == words(TOKENS) and usage.completion_tokens == TOKENS
    check_summary(usage.ferry)


async def test_an_anthropic_client_reads_on_and_finds_the_summary(cluster: Gateways) -> None:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(cluster.apps["g"]))
    client = anthropic.AsyncAnthropic(base_url="http://g", api_key="none", http_client=http, max_retries=0)

    async def ask() -> tuple[str, list[Any]]:
        asked = {"model": MODEL, "max_tokens": TOKENS, "messages": MESSAGES, "extra_headers": ASK}
        async with client.messages.stream(**asked) as stream:
            events = [event async for event in stream]
            return await stream.get_final_text(), [e.usage for e in events if e.type == "message_delta"]

    text, (usage,) = await moved(cluster, ask())
    await http.aclose()
    assert text == words(TOKENS)
    check_summary(usage.ferry)


async def test_a_refusal_is_no_report(cluster: Gateways) -> None:
    answer = await client_of(cluster).post("/v1/chat/completions", json={"model": "no-such"}, headers=ASK)
    assert answer.status_code == 400 and "ferry" not in answer.text
