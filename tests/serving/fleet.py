"""A PoolClient over scripted engines, with a ledger of what AsyncLLM would have got from it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.v1.engine import FinishReason

from serving.clock import Clock, SystemClock
from serving.contexts.pool_client import PoolClient
from serving.engine.channel import ChannelKeys
from serving.metrics import GatewayMetrics
from serving.types import ClusterView, PoolRole
from tests.fakes import ScriptedEngine, request, token_stream, until

THRESHOLD_TOKENS = 64
LONG, SHORT = THRESHOLD_TOKENS, THRESHOLD_TOKENS - 1
LABELS = {"model_name": "m", "gateway": "g"}


class Fleet:
    """Engines by name; `p…` prefill, `d…` decode, `m…` mixed."""

    def __init__(self, *, clock: Clock | None = None, engine_wait_s: float = 2.0) -> None:
        self.keys, self.clock = ChannelKeys.generate(), clock or SystemClock()
        self.registry = CollectorRegistry()
        self.client = PoolClient(
            keys=self.keys,
            clock=self.clock,
            metrics=GatewayMetrics(self.registry, model_name="m", gateway="g"),
            disaggregate_from_tokens=THRESHOLD_TOKENS,
            engine_wait_s=engine_wait_s,
        )
        self.engines: dict[str, ScriptedEngine] = {}
        self.held: set[tuple[str, str]] = set()
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, list[FinishReason]] = defaultdict(list)
        self._closed: list[ScriptedEngine] = []
        self._version = 0
        self._pump = asyncio.create_task(self._read())

    def __getitem__(self, name: str) -> ScriptedEngine:
        return self.engines[name]

    async def start(self, *names: str) -> None:
        """Start engines and show all of them to the client; return when they have answered it."""
        roles = {"p": PoolRole.PREFILL, "d": PoolRole.DECODE, "m": PoolRole.MIXED}
        for name in names:
            self.engines[name] = ScriptedEngine(name, roles[name[0]], keys=self.keys, clock=self.clock, held=self.held)
        await self.show()
        await until(lambda: len([e for e in self.client.engines.all() if e.link.info]) == len(self.engines))

    async def show(self) -> None:
        self._version += 1
        view = ClusterView(version=self._version, replicas=tuple(e.replica for e in self.engines.values()))
        await self.client.follow(view)

    async def kill(self, name: str) -> None:
        """The engine says GONE and is gone, here too."""
        engine = self.engines.pop(name)
        await engine.die()
        self._closed.append(engine)
        await until(lambda: self.client.engines.get(name) is None)

    async def ask(self, request_id: str, *, prompt_tokens: int, **params: Any) -> None:
        await self.client.add_request_async(request(request_id, prompt_tokens=prompt_tokens, **params))

    async def finished(self, request_id: str) -> FinishReason:
        await until(lambda: self.ends[request_id])
        return self.ends[request_id][0]

    async def expect_exact(self, request_id: str, count: int, first_token: int = 7) -> None:
        """The context ends with the unbroken stream, each token once."""
        assert await self.finished(request_id) is FinishReason.LENGTH
        assert self.tokens[request_id] == token_stream([first_token], count)

    async def _read(self) -> None:
        while True:
            for output in (await self.client.get_output_async()).outputs:
                name = output.request_id
                assert not self.ends[name], "an output after the end"
                assert output.kv_transfer_params is None, "clients must not see where KV lies"
                self.tokens[name] += output.new_token_ids
                if output.finish_reason is not None:
                    self.ends[name].append(output.finish_reason)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"ferry:{name}", LABELS | labels) or 0.0

    async def close(self) -> None:
        await self.client.close()
        for engine in (*self.engines.values(), *self._closed):
            await engine.close()
        if self._pump.done():
            self._pump.result()
        self._pump.cancel()
