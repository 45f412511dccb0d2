"""Ray's door of an engine: one Serve replica hosts one engine core and announces it while it lives."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.engine.process import EngineSpec, start_host
from serving.errors import EngineStartFailed
from serving.types import PoolRole, Replica, ReplicaState

logger = logging.getLogger("ray.serve")

ANNOUNCE_INTERVAL_S = 2.0
DRAIN_TIMEOUT_S = 30.0
CAUSE_LINES = 400


class EngineReplica:
    """One engine of a pool."""

    async def __init__(
        self, spec: EngineSpec, role: PoolRole, keys: ChannelKeys, controller: DeploymentHandle
    ) -> None:
        self._controller = controller
        context = serve.get_replica_context()
        replica_id = f"{spec.pool}-{context.replica_id.unique_id}"
        try:
            self._host = await start_host(
                spec,
                replica_id=replica_id,
                host=ray.util.get_node_ip_address(),
                keys=keys,
                clock=SystemClock(),
            )
        except EngineStartFailed as error:
            cause = _cause_in_log()
            raise EngineStartFailed(cause or error.message, error.remedy) from error
        self._replica = Replica(
            replica_id=replica_id,
            pool=spec.pool,
            role=role,
            state=ReplicaState.STARTING,
            address=self._host.address,
            node_id=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            info=self._host.info,
        )
        self._announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        while self._host.dead is None:
            try:
                await self._controller.announce.remote(self._replica)
            except Exception:  # the controller restarts; the next announcement finds the new one
                logger.exception("announcing failed; will repeat")
            await asyncio.sleep(ANNOUNCE_INTERVAL_S)

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        if self._host.dead is not None:
            raise RuntimeError(f"engine core died: {self._host.dead}")

    async def __del__(self) -> None:
        if not hasattr(self, "_host"):
            return
        self._announcing.cancel()
        if not await self._host.drained(DRAIN_TIMEOUT_S):
            logger.warning("legs are left after %.0f s of draining", DRAIN_TIMEOUT_S)
        await self._host.close()


def _cause_in_log() -> str | None:
    """What vLLM's core said before it died: it prints the cause to this process's stderr, which Ray keeps in a file."""
    try:
        lines = Path(os.readlink("/proc/self/fd/2")).read_text(errors="replace").splitlines()
    except OSError:
        return None
    errors = [line for line in lines[-CAUSE_LINES:] if _names_an_error(line)]
    return errors[-1].split("] ", 1)[-1].strip() if errors else None


def _names_an_error(line: str) -> bool:
    head = line.split("] ", 1)[-1].strip().split(":", 1)[0]
    return head.endswith(("Error", "Exception")) and " " not in head and "Engine core initialization" not in line
