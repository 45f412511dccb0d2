"""Ray's door of the gateway: the ingress replica. vLLM is imported only inside it, so that launching is light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.gateway.spec import GatewaySpec
from serving.logs import join_ray_log
from serving.pools.controller import GatewayReport
from serving.types import ClusterView, MoveWish

if TYPE_CHECKING:
    from serving.gateway.error_envelope import AsgiApp


@serve.ingress()
class GatewayReplica:
    """One gateway behind Serve's HTTP proxy. The pools are arguments so that Serve deploys them with it."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits constructors
        self, spec: GatewaySpec, keys: ChannelKeys, controller: DeploymentHandle, *_pools: DeploymentHandle
    ) -> None:
        from serving.gateway.gateway import Gateway

        join_ray_log()
        self._gateway = Gateway(
            spec,
            gateway_id=serve.get_replica_context().replica_id.unique_id,
            keys=keys,
            controller=_RayController(controller),
            clock=SystemClock(),
        )
        self._app = await self._gateway.open()

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return self._app

    async def __del__(self) -> None:
        if hasattr(self, "_gateway"):
            await self._gateway.close()


class _RayController:
    """The controller as a gateway sees it, over a Serve handle."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView:
        view: ClusterView = await self._handle.watch.remote(known_version, timeout_s)
        return view

    async def report(self, gateway_id: str, report: GatewayReport) -> None:
        await self._handle.report.remote(gateway_id, report)

    async def gateway_expositions(self) -> list[str]:
        found: list[str] = await self._handle.gateway_expositions.remote()
        return found

    async def contexts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._handle.contexts.remote()
        return found

    async def pass_on(self, wish: MoveWish, asked_by: str) -> bool:
        return bool(await self._handle.pass_on.remote(wish, asked_by))

    async def drain(self, replica_id: str, deadline_s: float | None = None) -> bool:
        return bool(await self._handle.drain.remote(replica_id, deadline_s))

    async def undrain(self, replica_id: str) -> bool:
        return bool(await self._handle.undrain.remote(replica_id))

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._handle.status.remote()
        return found
