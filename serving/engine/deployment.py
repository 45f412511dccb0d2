"""Ray's door of an engine: one Serve replica hosts one engine core and announces it while it lives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.engine.process import EngineSpec, start_host
from serving.errors import EngineStartFailed
from serving.logs import join_ray_log
from serving.types import PoolRole, Replica, ReplicaState

logger = logging.getLogger("ray.serve")

ANNOUNCE_INTERVAL_S = 2.0
DRAIN_TIMEOUT_S = 30.0
TELL_TIMEOUT_S = 3.0
"""When everything stops, the controller may be gone: Ray would wait for another one."""
# vLLM's exceptions that only point at another one.
WRAPPERS = ("initialization failed", "See stack trace", "See root cause")


class EngineReplica:
    """One engine of a pool."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits constructors
        self, spec: EngineSpec, role: PoolRole, keys: ChannelKeys, controller: DeploymentHandle
    ) -> None:
        join_ray_log()
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
            if error.__cause__ is None:
                raise  # it is no exception of vLLM's, which only point at its log
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
                state = await self._controller.announce.remote(self._replica)
                self._replica = replace(self._replica, state=state)
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
        await self._tell_controller("drain", DRAIN_TIMEOUT_S)
        if not await self._host.drained(DRAIN_TIMEOUT_S):
            logger.warning("legs are left after %.0f s of draining", DRAIN_TIMEOUT_S)
        # Not before: a controller that loses sight of it meanwhile should find it again, and draining.
        self._announcing.cancel()
        await self._tell_controller("leave")
        await self._host.close()

    async def _tell_controller(self, what: str, *details: float) -> None:
        try:
            call = getattr(self._controller, what).remote(self._replica.replica_id, *details)
            await asyncio.wait_for(call, TELL_TIMEOUT_S)
        except Exception:  # whatever Ray raises for a controller that is gone; the gateways see the engine go anyway
            logger.exception("telling the controller to %s failed", what)


def _cause_in_log() -> str | None:
    """What vLLM said before it died: its processes print the cause to this one's output, which Ray keeps in files."""
    lines: list[str] = []
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            lines += Path(os.readlink(f"/proc/self/fd/{descriptor}")).read_text(errors="replace").splitlines()
    errors = [message for line in lines if (message := _error_in(line)) is not None]
    return errors[-1] if errors else None


def _error_in(line: str) -> str | None:
    """The exception that a log line ends a traceback with; None for other lines, and for vLLM's wrappers."""
    message = line.rsplit("] ", 1)[-1].strip()
    kind = message.split(":", 1)[0].rsplit(".", 1)[-1]
    is_error = kind.endswith(("Error", "Exception")) and kind.isidentifier() and ": " in message
    return message if is_error and not any(wrapper in message for wrapper in WRAPPERS) else None
