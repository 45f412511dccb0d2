"""Ray's door of the controller: a single replica that engines and gateways reach by handle."""

from __future__ import annotations

from typing import Any

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.logs import join_ray_log
from serving.pools.controller import Controller, GatewayReport
from serving.types import ClusterView, MoveWish, Replica, ReplicaId, ReplicaState

# Twice the interval of announcements: after a restart, wait until all replicas have spoken.
SETTLE_S = 4.0


class ControllerReplica:
    """Passes calls on; the event loop of the replica is the controller's."""

    async def __init__(self, keys: ChannelKeys) -> None:  # type: ignore[misc]  # Ray Serve awaits constructors
        join_ray_log()
        self._controller = Controller(keys=keys, clock=SystemClock(), settle_s=SETTLE_S)

    async def announce(self, replica: Replica) -> ReplicaState:
        return await self._controller.announce(replica)

    async def leave(self, replica_id: ReplicaId) -> None:
        await self._controller.leave(replica_id)

    async def drain(self, replica_id: ReplicaId, deadline_s: float | None = None) -> bool:
        return await self._controller.drain(replica_id, deadline_s)

    async def undrain(self, replica_id: ReplicaId) -> bool:
        return await self._controller.undrain(replica_id)

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView:
        return await self._controller.watch(known_version, timeout_s)

    async def stop_accepting(self) -> None:
        await self._controller.stop_accepting()

    async def report(self, gateway_id: str, report: GatewayReport) -> None:
        await self._controller.report(gateway_id, report)

    async def gateway_expositions(self) -> list[str]:
        return await self._controller.gateway_expositions()

    async def contexts(self) -> list[dict[str, Any]]:
        return await self._controller.contexts()

    async def pass_on(self, wish: MoveWish, asked_by: str) -> bool:
        return await self._controller.pass_on(wish, asked_by)

    async def status(self) -> dict[str, Any]:
        return await self._controller.status()
