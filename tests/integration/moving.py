"""A pool client that moves each context exactly where a test cuts it: after so many output tokens, from one engine of
two to the other and, with several cuts, back again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import pytest
from prometheus_client import CollectorRegistry
from vllm.v1.engine.async_llm import AsyncLLM

from serving.clock import SystemClock
from serving.contexts.context import Context
from serving.contexts.engine_set import Engine
from serving.contexts.legs import Kv
from serving.contexts.placer import Placer
from serving.contexts.pool_client import PoolClient
from serving.contexts.running import Running
from serving.engine import core
from serving.gateway.llm import front_end
from serving.metrics import GatewayMetrics
from serving.router.policy import Route
from serving.types import MoveReason
from tests.integration.engines import SMALL_BLOCKS, Hosts, model_files, show

Mode = Literal["kv", "replay"]
Depth = Literal["usual", "whole"]
DEPTHS = ["usual", pytest.param("whole", marks=pytest.mark.chaos)]
LABELS = {"model_name": "m", "gateway": "g"}
# A replay computes the same positions in one prefill instead of one by one: other matrix shapes, other last bits.
TOLERANCE: dict[Mode, float] = {"kv": 0.0, "replay": 2e-3}
FREED_WITHIN_S = 5.0
ATTEMPTS = 3
T = TypeVar("T")


class CuttingPlacer(Placer):
    """Leg n runs on engine n modulo the number of engines, and hands off at the next of `cuts` by itself."""

    cuts: Sequence[int] = ()

    async def _route(self, running: Running) -> Route | None:
        engines = sorted(candidate.replica_id for candidate in self._engines.candidates())
        if not engines:  # all stood still, as on a machine that paused: wait for one
            return await super()._route(running)
        return Route(replica_id=engines[running.context.epoch % len(engines)], hands_off=False, reason="in turn")

    def _handoff_at_tokens(self, context: Context, route: Route) -> int | None:
        ahead = (cut for cut in self.cuts if len(context.output_token_ids) < cut < context.max_tokens)
        return min(ahead, default=None)

    async def _begin_leg(self, running: Running, engine: Engine, route: Route, kv: Kv | None) -> None:
        if kv is not None and self._handoff_at_tokens(running.context, route) is not None:
            # A leg that pulls and knows from its start that it will be pulled from. Ferry itself has none: its later
            # handoffs are wishes, and mark the running request just so (serving.engine.handoff).
            kv = kv | {"do_remote_decode": True}
        await super()._begin_leg(running, engine, route, kv)


class MovingClient(PoolClient):
    """Hands each context off after `cuts` output tokens, by KV or by dropping the KV at the handoff and replaying.

    `moved` counts contexts by the token at which they moved.
    """

    _placer: CuttingPlacer

    def __init__(self, running: Hosts):
        self.registry = CollectorRegistry()
        super().__init__(
            keys=running.keys,
            clock=SystemClock(),
            metrics=GatewayMetrics(self.registry, **LABELS),
            disaggregate_from_tokens=1,
            engine_wait_s=10,
            placer=CuttingPlacer,
        )
        self.mode: Mode = "kv"
        self.moved: Counter[int] = Counter()
        self._lost_engines = 0

    async def cut(self, *tokens: int, mode: Mode = "kv") -> None:
        """Cut the contexts to come after so many output tokens each; none: they stay. Begin with empty caches."""
        self._placer.cuts, self.mode = tokens, mode
        self.moved.clear()
        deadline_s = self._clock.now_s() + FREED_WITHIN_S
        while not await self.reset_prefix_cache_async():
            assert self._clock.now_s() < deadline_s, "an engine holds blocks of a request that ended"
            await asyncio.sleep(0.05)

    def sample(self, name: str, **labels: str) -> float:
        """A value of this client's metrics."""
        return self.registry.get_sample_value(name, LABELS | labels) or 0.0

    async def run_cut(self, run: Callable[[], Awaitable[T]], *tokens: int, mode: Mode = "kv") -> T:
        """What `run` gives with these cuts; anew if the machine held an engine up for so long that Ferry took it for
        lost and replayed: that is not the move in question."""
        for _ in range(ATTEMPTS):
            await self.cut(*tokens, mode=mode)
            self._lost_engines = 0
            found = await run()
            if not self._lost_engines:
                return found
        raise AssertionError(f"engines were lost in each of {ATTEMPTS} attempts")

    def _leave(self, running: Running, *, mode: str, reason: MoveReason) -> None:
        if mode == "kv":
            self.moved[len(running.context.output_token_ids)] += 1
            mode = self.mode
        else:
            self._lost_engines += 1
        super()._leave(running, mode=mode, reason=reason)

    def _place_soon(self, running: Running, kv: Kv | None) -> None:
        if kv is not None and self.mode == "replay":
            self._spawn(self._placer.release(kv))
            kv = None
        super()._place_soon(running, kv)


def runs(cuts: Sequence[tuple[int, ...]], depth: Depth) -> list[tuple[Mode, tuple[int, ...]]]:
    """The cells of one row of the matrix: every cut by KV and by replay; usually every third one by KV, and the last
    by both, which is away and back."""
    carried = cuts if depth == "whole" else [*cuts[:-1:3], cuts[-1]]
    replayed = cuts if depth == "whole" else cuts[-1:]
    return [*(("kv", cut) for cut in carried), *(("replay", cut) for cut in replayed)]


@asynccontextmanager
async def moving(running: Hosts) -> AsyncIterator[tuple[MovingClient, AsyncLLM]]:
    """A client that knows these engines, and vLLM's front end over it."""
    client = MovingClient(running)
    await show(running, client)
    llm = front_end(core.engine_config(core.engine_args(model_files(), SMALL_BLOCKS, on_cpu=True)), client)
    try:
        yield client, llm
    finally:
        await client.close()
        llm.shutdown()
