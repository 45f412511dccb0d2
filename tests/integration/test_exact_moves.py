"""The exactness matrix: a context that moves gives what it gives unmoved, in every field, at every kind of token.

Float32 engines, one context at a time, caches emptied before each run: a moved step has the same shapes as an unmoved
one, so KV moves must be equal to the bit. A replay computes the same positions in one prefill instead of one by one;
its logprobs are compared with a tolerance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import SystemClock
from serving.contexts import pool_client
from serving.contexts.legs import Kv
from serving.contexts.pool_client import PoolClient
from serving.engine import core
from serving.gateway.llm import front_end
from serving.metrics import GatewayMetrics
from tests.integration.engines import SETTINGS, Hosts, hosts, model_files, show

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600)]

BLOCK = 128
TOKENS = 24
PROMPT_TOKENS = BLOCK - 8
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logprobs": 2},
    "seeded": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 11, "logprobs": 2},
    "penalties": {
        "temperature": 0,
        "presence_penalty": 1.2,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.15,
    },
    "logit bias": {"temperature": 0, "logit_bias": {260: 4.0, 28: -3.0}},
    "min tokens": {"temperature": 0, "min_tokens": TOKENS - 2, "logit_bias": {2: 8.0}, "ignore_eos": False},
    "stop string": {"temperature": 0, "stop": ["story of a"]},
    "stop token": {"temperature": 0, "stop_token_ids": [28]},
    "three of them": {"temperature": 0.9, "seed": 3, "n": 3},
    "json": {"temperature": 0, "structured_outputs": StructuredOutputsParams(json=PERSON)},
    "regex": {"temperature": 0, "structured_outputs": StructuredOutputsParams(regex=r"([a-z]{3}-){8}[a-z]{3}")},
    "grammar": {
        "temperature": 0,
        "structured_outputs": StructuredOutputsParams(grammar='root ::= ("tick " | "tock ")+ "end"'),
    },
    "multi-byte": {"temperature": 0, "structured_outputs": StructuredOutputsParams(regex="(é|漢|🙂){12}")},
}
# Around the first tokens, the block boundary (prompt + output = 128 at 8), the middle and the end.
REPLAY_TOLERANCE = 2e-3
POSITIONS = [1, 2, 7, 8, 9, 15, TOKENS - 1]


class MovingClient(PoolClient):
    """Moves by KV, or drops the KV at the handoff and replays."""

    replays = False

    def _place_soon(self, request_id: str, kv: Kv | None) -> None:
        if kv is not None and self.replays:
            self._spawn(self._release(kv))
            kv = None
        super()._place_soon(request_id, kv)


@pytest.fixture(scope="module")
def running() -> Iterator[Hosts]:
    with hosts() as running:
        yield running


@pytest.fixture
async def client(running: Hosts) -> AsyncIterator[MovingClient]:
    client = MovingClient(
        keys=running.keys,
        clock=SystemClock(),
        metrics=GatewayMetrics(CollectorRegistry(), model_name="m", gateway="g"),
        disaggregate_from_tokens=1,
        engine_wait_s=10,
    )
    await show(running, client)
    yield client
    await client.close()


@pytest.fixture
async def llm(client: MovingClient) -> AsyncIterator[AsyncLLM]:
    llm = front_end(core.engine_config(core.engine_args(model_files(), SETTINGS, on_cpu=True)), client)
    yield llm
    llm.shutdown()


def prompt(llm: AsyncLLM) -> dict[str, list[int]]:
    """A prompt of exactly PROMPT_TOKENS that the model goes on from sensibly."""
    tokenizer = llm.renderer.tokenizer
    text = "Once upon a time a ferry crossed the wide river every night, and people told its story. " * 12
    return {"prompt_token_ids": list(tokenizer.encode(text))[:PROMPT_TOKENS]}


async def run(llm: AsyncLLM, client: MovingClient, name: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a client could see of one request."""
    await client.reset_prefix_cache_async()
    whole = {"max_tokens": TOKENS, "ignore_eos": True, "output_kind": RequestOutputKind.FINAL_ONLY}
    sampling = SamplingParams(**whole | params)
    (final,) = [output async for output in llm.generate(prompt(llm), sampling, name)]
    return [
        {
            "tokens": list(output.token_ids),
            "text": output.text,
            "finish": (output.finish_reason, output.stop_reason),
            "logprobs": [
                (token, found.logprob) for position in output.logprobs or [] for token, found in position.items()
            ],
        }
        for output in sorted(final.outputs, key=lambda output: output.index)
    ]


def equal(moved: list[dict[str, Any]], unmoved: list[dict[str, Any]], *, tolerance: float) -> bool:
    """Tokens, texts and finish exactly; logprobs within `tolerance`, for the same alternatives."""
    for ours, theirs in zip(moved, unmoved, strict=True):
        if any(ours[field] != theirs[field] for field in ("tokens", "text", "finish")):
            return False
        if [token for token, _ in ours["logprobs"]] != [token for token, _ in theirs["logprobs"]]:
            return False
        gaps = (abs(a - b) for (_, a), (_, b) in zip(ours["logprobs"], theirs["logprobs"], strict=True))
        if max(gaps, default=0.0) > tolerance:
            return False
    return True


@pytest.mark.parametrize("mode", ["kv", "replay"])
@pytest.mark.parametrize("case", CASES)
async def test_moved_equals_unmoved(
    llm: AsyncLLM, client: MovingClient, monkeypatch: pytest.MonkeyPatch, case: str, mode: str
) -> None:
    params = CASES[case]
    client._disaggregate_from_tokens = 10**9
    unmoved = await run(llm, client, f"{case}-unmoved", params)
    client._disaggregate_from_tokens, client.replays = 1, mode == "replay"
    different = []
    for position in POSITIONS:
        monkeypatch.setattr(pool_client, "FIRST_TOKEN", position)
        moved = await run(llm, client, f"{case}-{mode}-{position}", params)
        if not equal(moved, unmoved, tolerance=0.0 if mode == "kv" else REPLAY_TOLERANCE):
            different.append((position, moved))
    for position, moved in different:
        for ours, theirs in zip(moved, unmoved, strict=True):
            at = next(
                (i for i, (a, b) in enumerate(zip(ours["tokens"], theirs["tokens"], strict=False)) if a != b), None
            )
            print(f"moved at {position}: first other token at {at}: {ours['tokens']} against {theirs['tokens']}")
    assert not different
    await asyncio.sleep(0.6)
    assert all(e.link.load.kv_usage == 0 for e in client.engines.all()), "no engine holds a block"
