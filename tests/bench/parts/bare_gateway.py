"""A gateway alone in a process: its own code and uvicorn as Ray Serve's replica runs it, but no Ray, and one engine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
import uvloop
from parts.children import answer_all

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.engine.core import ENGINE_ENV, ModelFiles
from serving.engine.process import EngineSpec
from serving.gateway.spec import GatewaySpec
from serving.pools.controller import GatewayReport
from serving.settings import Settings
from serving.types import ClusterView, Replica


@dataclass(frozen=True, slots=True)
class OneView:
    """A controller whose cluster never changes."""

    view: ClusterView

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView:
        if known_version == self.view.version:
            await asyncio.sleep(timeout_s)
        return self.view

    async def report(self, gateway_id: str, report: GatewayReport) -> None:
        return None

    async def gateway_expositions(self) -> list[str]:
        return []

    async def status(self) -> dict[str, Any]:
        return {}


def gateway_main(
    conn: Connection, settings: Settings, model: ModelFiles, keys: ChannelKeys, replicas: tuple[Replica, ...]
) -> None:
    """The process: says its port when it can serve, and serves until the pipe closes."""
    os.environ.update(ENGINE_ENV)
    spec = GatewaySpec(
        settings=settings.gateway,
        engine=EngineSpec(model=model, settings=settings.engine, pool="mixed", on_cpu=True),
        admin_token="bench",
        needs_prefill=False,
    )
    uvloop.run(_serve(conn, spec, keys, ClusterView(version=1, replicas=replicas)))


async def _serve(conn: Connection, spec: GatewaySpec, keys: ChannelKeys, view: ClusterView) -> None:
    from serving.gateway.gateway import Gateway

    gateway = Gateway(spec, gateway_id="bench", keys=keys, controller=OneView(view), clock=SystemClock())
    app = await gateway.open()
    sock = socket.create_server(("127.0.0.1", 0))
    # As in ray.serve._private.http_util.start_asgi_http_server.
    logging.getLogger("uvicorn.error").level = logging.CRITICAL
    config = uvicorn.Config(
        lambda: app, factory=True, lifespan="off", access_log=False, log_level=None, log_config=None, loop="none"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    conn.send(sock.getsockname()[1])
    await answer_all(conn, _nothing)
    server.should_exit = True
    await serving
    await gateway.close()


async def _nothing(question: Any) -> None:
    raise AssertionError(f"a bare gateway is asked nothing: {question!r}")
