"""What vLLM's front end makes of a request that no engine could go on with."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import RetryableRequestError
from vllm.v1.engine.async_llm import AsyncLLM

from serving.contexts.pool_client import NO_ENGINE
from serving.gateway.llm import FrontEnd


def output(*reasons: str | None, stop_reason: str | None = None) -> Any:
    """`stop_reason`: of the last."""
    outputs = [SimpleNamespace(finish_reason=reason, stop_reason=None) for reason in reasons]
    outputs[-1].stop_reason = stop_reason
    return SimpleNamespace(outputs=outputs)


def saying(monkeypatch: pytest.MonkeyPatch, *outputs: Any) -> list[str]:
    """Let vLLM's own stream say this; returns what becomes of it."""
    ends: list[str] = []

    async def generate(_self: Any, *_arguments: Any, **_more: Any) -> AsyncGenerator[Any, None]:
        try:
            for one in outputs:
                yield one
            ends.append("whole")
        finally:
            ends.append("closed")

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    return ends


async def test_a_failed_request_is_a_503_and_its_stream_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = saying(monkeypatch, output(None), output(None, "error", stop_reason=NO_ENGINE), output("stop"))
    seen = 0
    with pytest.raises(RetryableRequestError, match="no engine") as raised:
        async for _ in FrontEnd.generate(FrontEnd.__new__(FrontEnd), "prompt"):
            seen += 1
    assert (seen, ends) == (1, ["closed"])
    assert raised.value.status_code == HTTPStatus.SERVICE_UNAVAILABLE


async def test_all_others_pass_also_what_an_engine_failed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [output(None), output("stop", "length"), output("error"), output("stop", stop_reason="a stop string")]
    ends = saying(monkeypatch, *told)
    assert [one async for one in FrontEnd.generate(FrontEnd.__new__(FrontEnd), "prompt")] == told
    assert ends == ["whole", "closed"]
