"""An engine dies without notice: its stream goes on from the token log, on the prefill engine if no other is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.integration.conftest import CORE_NAME, Deployment

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(400)]

TOKENS = 300
KILL_AT = 40
REPLACED_WITHIN_S = 180.0


def stream_text(deployment: Deployment, on_event: Callable[[int], None]) -> tuple[str, dict[str, int]]:
    """Text and usage of one greedy stream; `on_event` runs after each event."""
    body = {
        "model": deployment.model,
        "messages": [{"role": "user", "content": "Tell a long story about a ferry that crosses a river at night."}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, usage, ended = "", {}, False
    with httpx.stream("POST", f"{deployment.base_url}/v1/chat/completions", json=body, timeout=180) as answer:
        for index, line in enumerate(line for line in answer.iter_lines() if line.startswith("data: ")):
            ended = line == "data: [DONE]"
            if ended:
                break
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            usage = event.get("usage") or usage
            on_event(index)
    assert ended
    return text, usage


def core_pid_of(deployment: Deployment, pool: str) -> int:
    pid = next(r["pid"] for r in deployment.status()["replicas"] if r["pool"] == pool)
    core = next(p for p in psutil.Process(pid).children(recursive=True) if CORE_NAME in p.name())
    return int(core.pid)


def test_a_stream_outlives_its_engine(deployment: Deployment) -> None:
    undisturbed, usage = stream_text(deployment, lambda _index: None)

    core_pid = core_pid_of(deployment, "decode")
    # The deployment is that of other tests too, and a machine that pauses makes engines look lost now and then.
    replayed = deployment.metric("ferry:moves_total", reason="engine_lost", mode="replay")

    def kill_once(index: int) -> None:
        if index == KILL_AT:
            os.kill(core_pid, signal.SIGKILL)

    disturbed, usage_after = stream_text(deployment, kill_once)
    assert disturbed == undisturbed
    assert usage_after["completion_tokens"] == usage["completion_tokens"] == TOKENS
    assert usage_after["prompt_tokens"] == usage["prompt_tokens"]
    assert deployment.metric("ferry:moves_total", reason="engine_lost", mode="replay") > replayed
    until_decodes_again(deployment)
    assert deployment.idle_within(5.0) == []


def until_decodes_again(deployment: Deployment) -> None:
    """Ray has replaced the engine, as the tests after this one expect."""
    deadline_s = time.monotonic() + REPLACED_WITHIN_S
    while not any(r["pool"] == "decode" and r["state"] == "ready" for r in deployment.status()["replicas"]):
        assert time.monotonic() < deadline_s, "no decode engine took the place of the one that was killed"
        time.sleep(0.5)
