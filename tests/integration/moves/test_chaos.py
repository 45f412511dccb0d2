"""Engines that die or stand still at every seam of a move, under eight streams: all end complete and as undisturbed.

A seam is where `PoolClient` calls its failpoint. Each case proves that its seam was passed, and that nothing is left:
no block on any engine, no task and no file descriptor here. Float32 engines and prompts of random tokens, so that
greedy tokens do not hang on the shape of a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import SystemClock
from serving.contexts.pool_client import PoolClient
from serving.engine import core
from serving.errors import EngineLost
from serving.gateway.llm import front_end
from serving.metrics import GatewayMetrics
from serving.types import MoveReason
from tests.integration.engines import SMALL_BLOCKS, Host, Hosts, model_files, show

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(400)]

STREAMS = 8
TOKENS = 100
UNDER_WAY_TOKENS = 8
STREAMS_TIMEOUT_S = 120
LEAK_TIMEOUT_S = 60
SEAMS = [
    "during_precopy",
    "before_hand_off",
    "after_prefill_kv_ready",
    "after_epoch_bump",
    "before_pull",
    "during_pull",
    "before_token_log_append",
    "after_append_before_send",
]


def seams(*always: str) -> list[Any]:
    """All seams; those that `make test` leaves to `make chaos` are marked."""
    return [seam if seam in always else pytest.param(seam, marks=pytest.mark.chaos) for seam in SEAMS]


@dataclass(slots=True)
class Trap:
    """The failpoint of a client: springs once, at its seam."""

    seam: str | None = None
    spring: Callable[[], None] = field(default=lambda: None)

    def __call__(self, seam: str) -> None:
        if seam == self.seam:
            self.seam = None
            self.spring()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Engines, a client of them, and vLLM's front end on it."""

    running: Hosts
    trap: Trap
    client: PoolClient
    llm: AsyncLLM
    registry: CollectorRegistry

    def moves(self, mode: str) -> float:
        labels = {"model_name": "m", "gateway": "g", "reason": "engine_lost", "mode": mode}
        return self.registry.get_sample_value("ferry:moves_total", labels) or 0.0

    async def streams(self, name: str) -> list[list[int]]:
        return list(await asyncio.gather(*(self._stream(f"{n}-{name}") for n in range(STREAMS))))

    async def _stream(self, name: str) -> list[int]:
        draw = random.Random(name.partition("-")[0])
        prompt = {"prompt_token_ids": [draw.randrange(100, 40_000) for _ in range(draw.randrange(40, 200))]}
        params = SamplingParams(
            temperature=0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        (final,) = [output async for output in self.llm.generate(prompt, params, name)]
        assert final.outputs[0].finish_reason == "length"
        return list(final.outputs[0].token_ids)

    async def under_way(self) -> None:
        """Wait until all streams have some tokens."""
        while len(found := self.client.contexts()) < STREAMS or any(
            c["output_tokens"] < UNDER_WAY_TOKENS or c["replica"] is None for c in found
        ):
            await asyncio.sleep(0.005)

    def held(self) -> dict[str, float]:
        return {e.replica.replica_id: e.link.load.kv_usage for e in self.client.engines.all() if e.link.load.kv_usage}

    async def settled(self, tasks: int, fds: int) -> None:
        """Fail when something is left a minute after the last stream."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + LEAK_TIMEOUT_S
        await asyncio.sleep(1.0)
        while True:
            left = (self.held(), max(0, len(asyncio.all_tasks()) - tasks), max(0, psutil.Process().num_fds() - fds))
            if left == ({}, 0, 0) and len(self.client.engines.candidates()) == len(self.running.all):
                return
            assert loop.time() < deadline_s, f"left behind (blocks, tasks, file descriptors): {left}"
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def reference() -> list[list[int]]:
    """The undisturbed streams, once they are known."""
    return []


@pytest.fixture
async def stage(running: Hosts, reference: list[list[int]]) -> AsyncIterator[Stage]:
    trap, registry = Trap(), CollectorRegistry()
    client = PoolClient(
        keys=running.keys,
        clock=SystemClock(),
        metrics=GatewayMetrics(registry, model_name="m", gateway="g"),
        disaggregate_from_tokens=1,
        engine_wait_s=60,
        failpoint=trap,
    )
    await show(running, client)
    llm = front_end(core.engine_config(core.engine_args(model_files(), SMALL_BLOCKS, on_cpu=True)), client)
    stage = Stage(running=running, trap=trap, client=client, llm=llm, registry=registry)
    if not reference:
        reference += await stage.streams("undisturbed")
    yield stage
    llm.shutdown()
    await client.close()


async def disturb(stage: Stage, seam: str, harm: Callable[[Host], None], name: str) -> tuple[list[list[int]], Host]:
    """Move a context and do harm to its engine at the seam; returns the streams and the engine."""
    streams = asyncio.create_task(stage.streams(name))
    await stage.under_way()
    context = stage.client.contexts()[0]
    victim = stage.running[context["replica"]]
    stage.trap.spring = lambda: harm(victim)
    stage.trap.seam = seam
    # A move that was copied ahead to a busy engine ends without a pull.
    precopy = not seam.endswith("_pull")
    with contextlib.suppress(EngineLost, RuntimeError):  # gone, or refuses every call
        await stage.client.move(context["context"], reason=MoveReason.REBALANCE, precopy=precopy)
    found = await asyncio.wait_for(streams, STREAMS_TIMEOUT_S)
    assert stage.trap.seam is None, f"{seam} was never passed"
    return found, victim


@pytest.mark.parametrize("seam", seams("during_precopy"))
async def test_a_core_is_killed(stage: Stage, reference: list[list[int]], seam: str) -> None:
    await a_core_is_lost(stage, reference, seam, signal.SIGKILL)


@pytest.mark.parametrize("seam", seams("before_hand_off"))
async def test_a_core_is_told_to_end(stage: Stage, reference: list[list[int]], seam: str) -> None:
    """SIGTERM, as when its machine shuts down: vLLM aborts all that runs, and refuses whatever comes."""
    await a_core_is_lost(stage, reference, seam, signal.SIGTERM)


async def a_core_is_lost(stage: Stage, reference: list[list[int]], seam: str, sent: signal.Signals) -> None:
    tasks, fds = len(asyncio.all_tasks()), psutil.Process().num_fds()
    found, victim = await disturb(stage, seam, lambda host: host.core.send_signal(sent), f"{sent.name}-{seam}")
    assert found == reference
    assert stage.moves("replay") >= 1
    await asyncio.to_thread(stage.running.replace, victim.name)
    await show(stage.running, stage.client)
    await stage.settled(tasks, fds)


@pytest.mark.parametrize("seam", seams())
async def test_a_core_is_stopped_and_goes_on_later(stage: Stage, reference: list[list[int]], seam: str) -> None:
    tasks, fds = len(asyncio.all_tasks()), psutil.Process().num_fds()
    found, victim = await disturb(stage, seam, lambda host: host.core.suspend(), f"stop-{seam}")
    victim.core.resume()
    assert found == reference
    assert stage.moves("replay") >= 1
    await stage.settled(tasks, fds)


@pytest.mark.chaos
async def test_a_whole_host_is_stopped_and_goes_on_later(stage: Stage, reference: list[list[int]]) -> None:
    tasks, fds = len(asyncio.all_tasks()), psutil.Process().num_fds()

    def stop(host: Host) -> None:
        for process in (host.process, *host.process.children(recursive=True)):
            process.suspend()

    found, victim = await disturb(stage, "before_hand_off", stop, "freeze")
    for process in (victim.process, *victim.process.children(recursive=True)):
        process.resume()
    assert found == reference
    await stage.settled(tasks, fds)


@pytest.mark.chaos
async def test_a_whole_host_is_killed_and_takes_its_processes_along(stage: Stage, reference: list[list[int]]) -> None:
    tasks, fds = len(asyncio.all_tasks()), psutil.Process().num_fds()
    family: list[psutil.Process] = []

    def kill(host: Host) -> None:
        family.extend(host.process.children(recursive=True))
        host.process.kill()

    found, victim = await disturb(stage, "before_hand_off", kill, "host")
    assert found == reference
    left = await asyncio.to_thread(psutil.wait_procs, family, 30)
    assert left[1] == [], "its core and workers end with it"
    await asyncio.to_thread(stage.running.replace, victim.name)
    await show(stage.running, stage.client)
    await stage.settled(tasks, fds)
