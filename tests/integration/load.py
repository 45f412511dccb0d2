"""Streams whose whole answers can be compared."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.integration.conftest import Deployment


async def stream(client: httpx.AsyncClient, deployment: Deployment, index: int, *, tokens: int) -> tuple[str, int]:
    """Text and completion tokens of one greedy stream, which has exactly `tokens`."""
    body: dict[str, Any] = {
        "model": deployment.model,
        "messages": [{"role": "user", "content": f"Tell story number {index} about a ferry on a wide river."}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, generated = "", 0
    async with client.stream("POST", f"{deployment.base_url}/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            generated = (event.get("usage") or {}).get("completion_tokens", generated)
    assert generated == tokens
    return text, generated
