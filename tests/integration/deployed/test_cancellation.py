"""Clients that hang up: the engines stop at once and hold nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import httpx
import pytest

from tests.integration.conftest import Deployment

pytestmark = [pytest.mark.slow, pytest.mark.real]

REQUESTS = 200
CONCURRENCY = 16
HANG_UP_SHARE = 0.2
MAX_TOKENS = 12


@dataclass(frozen=True)
class Outcome:
    hung_up: bool
    events: int
    ended: bool


def body_of(deployment: Deployment, index: int, max_tokens: int) -> dict[str, object]:
    words = " ".join(str((index * 31 + word) % 977) for word in range(4 + index % 16))
    return {
        "model": deployment.model,
        "messages": [{"role": "user", "content": f"Continue the list: {words}"}],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "seed": index,
        "ignore_eos": True,
        "stream": True,
    }


async def stream(client: httpx.AsyncClient, deployment: Deployment, index: int, hang_up_at: int | None) -> Outcome:
    """One streamed chat; with `hang_up_at`, the client leaves after that many events."""
    url, events, ended = f"{deployment.base_url}/v1/chat/completions", 0, False
    async with client.stream("POST", url, json=body_of(deployment, index, max_tokens=MAX_TOKENS)) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            assert '"error"' not in line, line
            events += line.startswith("data: {")
            ended = ended or line == "data: [DONE]"
            if hang_up_at is not None and events >= hang_up_at:
                break
    return Outcome(hang_up_at is not None, events, ended)


async def test_200_streams_with_a_fifth_hanging_up(deployment: Deployment) -> None:
    draw = random.Random(7)
    plans = [draw.randrange(2, MAX_TOKENS - 4) if draw.random() < HANG_UP_SHARE else None for _ in range(REQUESTS)]
    gate = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:

        async def one(index: int) -> Outcome:
            async with gate:
                return await stream(client, deployment, index, plans[index])

        outcomes = await asyncio.gather(*(one(index) for index in range(REQUESTS)))
    stayed = [outcome for outcome in outcomes if not outcome.hung_up]
    assert 20 < sum(outcome.hung_up for outcome in outcomes) < 60
    assert all(outcome.ended for outcome in stayed), "who stayed got a whole stream"
    await asyncio.sleep(0.6)  # engines report twice a second; let the last report be younger than the last stream
    assert deployment.idle_within(2.0) == [], "no engine holds a block or runs a request"
    assert deployment.metric("ferry:requests_in_flight") == 0


async def test_hanging_up_frees_the_engine_within_a_second(deployment: Deployment) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"{deployment.base_url}/v1/chat/completions"
        async with client.stream("POST", url, json=body_of(deployment, 1, max_tokens=3000)) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert deployment.busy_within(3.0), "it runs while the client is there"
    assert deployment.idle_within(1.0) == []
