"""Hundreds of moves in a row on real engines: every stream as if nothing had moved, every block accounted for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import SystemClock
from serving.contexts import moves
from serving.contexts.pool_client import PoolClient
from serving.engine import core
from serving.engine.messages import HandOff
from serving.gateway.llm import front_end
from serving.metrics import GatewayMetrics
from serving.types import MoveReason
from tests.integration.engines import SMALL_BLOCKS, Hosts, model_files, show

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600)]

STREAMS = 4
LABELS = {"model_name": "m", "gateway": "g"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def client(running: Hosts, registry: CollectorRegistry) -> AsyncIterator[PoolClient]:
    client = PoolClient(
        keys=running.keys,
        clock=SystemClock(),
        metrics=GatewayMetrics(registry, model_name="m", gateway="g"),
        disaggregate_from_tokens=1,
        engine_wait_s=10,
    )
    await show(running, client)
    yield client
    await client.close()


@pytest.fixture
async def llm(client: PoolClient) -> AsyncIterator[AsyncLLM]:
    llm = front_end(core.engine_config(core.engine_args(model_files(), SMALL_BLOCKS, on_cpu=True)), client)
    yield llm
    llm.shutdown()


async def generate(llm: AsyncLLM, name: str, tokens: int) -> list[int]:
    draw = random.Random(name.partition("-")[0])
    prompt = {"prompt_token_ids": [draw.randrange(100, 40_000) for _ in range(draw.randrange(40, 400))]}
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY)
    (final,) = [output async for output in llm.generate(prompt, params, name)]
    return list(final.outputs[0].token_ids)


async def held(client: PoolClient) -> dict[str, float]:
    """What engines hold once their reports are younger than all that ran."""
    await asyncio.sleep(1.0)
    return {e.replica.replica_id: e.link.load.kv_usage for e in client.engines.all() if e.link.load.kv_usage}


async def test_a_precopied_move_is_exact_and_its_cut_over_finds_the_blocks(
    llm: AsyncLLM, client: PoolClient, registry: CollectorRegistry
) -> None:
    unmoved = await generate(llm, "a-unmoved", 120)
    await client.reset_prefix_cache_async()
    moved = asyncio.create_task(generate(llm, "a-moved", 120))
    while not (shown := client.contexts()) or shown[0]["output_tokens"] < 20:
        await asyncio.sleep(0.005)
    destination = next(e for e in client.engines.all() if e.replica.replica_id != shown[0]["replica"])
    assert await client.move(shown[0]["context"], reason=MoveReason.REBALANCE) is HandOff.AT_NEXT_TOKEN
    assert await moved == unmoved
    hits = [
        line for line in (await destination.link.call("metrics")).splitlines() if "prefix_cache_hits_total{" in line
    ]
    local = sum(float(line.rsplit(" ", 1)[1]) for line in hits if "external" not in line)
    full = (shown[0]["prompt_tokens"] + 20) // 32 * 32
    assert local >= full, f"the cut-over found what had gone ahead: {hits}"
    assert registry.get_sample_value("ferry:moves_total", LABELS | {"reason": "rebalance", "mode": "kv"}) == 1
    assert await held(client) == {}


async def test_on_a_slow_link_the_tail_is_recomputed_and_the_stream_exact(
    llm: AsyncLLM, client: PoolClient, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "CARRIED_WITHIN_STEPS", 0.0)
    unmoved = await generate(llm, "c-unmoved", 120)
    await client.reset_prefix_cache_async()
    moved = asyncio.create_task(generate(llm, "c-moved", 120))
    while not (shown := client.contexts()) or shown[0]["output_tokens"] < 20:
        await asyncio.sleep(0.005)
    assert await client.move(shown[0]["context"], reason=MoveReason.REBALANCE) is HandOff.AT_NEXT_TOKEN
    assert await moved == unmoved
    assert registry.get_sample_value("ferry:moves_total", LABELS | {"reason": "rebalance", "mode": "kv"}) == 1
    recomputed = registry.get_sample_value("ferry:recomputed_tokens_total", LABELS) or 0
    assert 1 <= recomputed <= moves.RECOMPUTED_TOKENS
    assert await held(client) == {}, "the source has its tail block back"


@pytest.mark.parametrize(
    ("count", "tokens"), [(6, 80), pytest.param(300, 200, marks=[pytest.mark.chaos, pytest.mark.timeout(1_500)])]
)
async def test_random_moves_leave_nothing_behind(
    llm: AsyncLLM, client: PoolClient, registry: CollectorRegistry, count: int, tokens: int
) -> None:
    names = [f"{n}" for n in range(STREAMS)]
    unmoved = list(await asyncio.gather(*(generate(llm, f"{name}-unmoved", tokens) for name in names)))
    draw, done, kinds = random.Random(5), 0, {True: 0, False: 0}
    while done < count:
        streams = [asyncio.create_task(generate(llm, f"{name}-{done}", tokens)) for name in names]
        while not all(stream.done() for stream in streams):
            await asyncio.sleep(draw.uniform(0.0, 0.05))
            contexts = client.contexts()
            if not contexts:
                continue
            precopy = draw.random() < 0.5
            answer = await client.move(draw.choice(contexts)["context"], reason=MoveReason.REBALANCE, precopy=precopy)
            done += answer is HandOff.AT_NEXT_TOKEN
            kinds[precopy] += answer is HandOff.AT_NEXT_TOKEN
        assert [await stream for stream in streams] == unmoved
    counted = registry.get_sample_value("ferry:moves_total", LABELS | {"reason": "rebalance", "mode": "kv"}) or 0
    assert counted >= count and min(kinds.values()) > count // 4
    assert await held(client) == {}, "no engine holds a block"
    assert not any(e.legs or e.unanswered for e in client.engines.all())
