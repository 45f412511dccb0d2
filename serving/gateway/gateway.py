"""One gateway: vLLM's front end over a pool client, the view of the cluster that it follows, and its doors."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from prometheus_client import CollectorRegistry
from vllm.utils.gc_utils import freeze_gc_heap

from serving.clock import Clock
from serving.contexts.pool_client import PoolClient
from serving.engine import core
from serving.engine.channel import ChannelKeys
from serving.errors import EngineLost
from serving.gateway.admin import AdminController, admin_router
from serving.gateway.error_envelope import AsgiApp
from serving.gateway.http import Doors, build, front_end_arguments
from serving.gateway.llm import front_end
from serving.gateway.readiness import not_ready_because
from serving.gateway.spec import GatewaySpec
from serving.gateway.wishes import Wishes
from serving.metrics import GatewayMetrics, merge
from serving.pools.controller import GatewayReport
from serving.types import ClusterView

logger = logging.getLogger("ray.serve")

WATCH_TIMEOUT_S = 20.0
RETRY_S = 1.0
REPORT_INTERVAL_S = 1.0


class ControllerClient(AdminController, Protocol):
    """The controller, as gateways use it."""

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView: ...

    async def report(self, gateway_id: str, report: GatewayReport) -> None: ...

    async def gateway_expositions(self) -> list[str]: ...


class Gateway:
    """One gateway. Make it inside the event loop that will serve it."""

    def __init__(
        self, spec: GatewaySpec, *, gateway_id: str, keys: ChannelKeys, controller: ControllerClient, clock: Clock
    ):
        self._spec, self._id, self._controller, self._clock = spec, gateway_id, controller, clock
        self._metrics = GatewayMetrics(
            CollectorRegistry(), model_name=spec.engine.model.served_name, gateway=gateway_id
        )
        self._pool = PoolClient(
            keys=keys,
            clock=clock,
            metrics=self._metrics,
            disaggregate_from_tokens=spec.settings.disaggregate_from_tokens,
            engine_wait_s=spec.settings.engine_wait_s,
            moves_at_once=spec.settings.moves_at_once,
        )
        self._wishes = Wishes(self._pool)
        args = core.engine_args(spec.engine.model, spec.engine.settings, on_cpu=spec.engine.on_cpu)
        self._llm = front_end(core.engine_config(args), self._pool)
        self._tasks: list[asyncio.Task[None]] = []
        self._was_ready = False

    async def open(self) -> AsgiApp:
        """Start to follow the cluster; returns the application to serve."""
        app = await self._build_app()
        # As vLLM's own server does at its start: a full collection of what stays anyway stops all streams for 0.4 s.
        freeze_gc_heap()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._report())]
        return app

    async def _build_app(self) -> AsgiApp:
        doors = Doors(
            wait_until_servable=self._pool.wait_until_servable,
            not_ready_because=self._not_ready_because,
            metrics=self._exposition,
            engine_wait_s=self._spec.settings.engine_wait_s,
            admin=admin_router(self._spec.admin_token, self._controller, self._pool, gateway_id=self._id),
        )
        arguments = front_end_arguments(self._spec.engine.model, self._spec.settings)
        return await build(self._llm, arguments, doors)

    async def _follow(self) -> None:
        """Keep the pool client's view of the cluster current."""
        version = -1
        while True:
            try:
                view = await self._controller.watch(version, WATCH_TIMEOUT_S)
                # Also when nothing changed: it relinks an engine that this gateway alone had lost.
                await self._pool.follow(view)
                self._wishes.follow(view)
            except Exception:  # the controller restarts, or the view is bad; until the next one the last stands
                logger.exception("following the cluster failed; will repeat")
                await self._clock.sleep(RETRY_S)
                continue
            version = view.version

    async def _report(self) -> None:
        """Leave this gateway's metrics and contexts with the controller, where every gateway finds them."""
        while True:
            self._not_ready_because()  # so that it is noted if nobody asks
            report = GatewayReport(
                exposition=self._metrics.exposition(),
                in_flight=self._pool.in_flight,
                contexts=tuple(self._pool.contexts()),
            )
            try:
                await self._controller.report(self._id, report)
            except Exception:  # the controller restarts; the next report finds the new one
                logger.exception("reporting failed; will repeat")
            await self._clock.sleep(REPORT_INTERVAL_S)

    def _not_ready_because(self) -> str | None:
        """What is missing; notes when nothing is."""
        if not self._pool.accepting:
            return "shutting down"
        roles = {candidate.role for candidate in self._pool.engines.candidates()}
        because = not_ready_because(roles, needs_prefill=self._spec.needs_prefill, was_ready=self._was_ready)
        self._was_ready = self._was_ready or because is None
        return because

    async def _exposition(self) -> str:
        """All engines' and all gateways' metrics. With one gateway its own are taken fresh."""
        if self._spec.settings.replicas == 1:
            gateways = [self._metrics.exposition()]
        else:
            gateways = await self._controller.gateway_expositions()
        engines = await asyncio.gather(
            *(engine.link.call("metrics") for engine in self._pool.engines.all()), return_exceptions=True
        )
        for found in engines:
            if isinstance(found, BaseException) and not isinstance(found, EngineLost):
                raise found
        return merge([*gateways, *(text for text in engines if isinstance(text, str))])

    async def close(self) -> None:
        """Stop following, say goodbye to the engines."""
        for task in self._tasks:
            task.cancel()
        self._wishes.close()
        await self._pool.close()
        self._llm.shutdown()
