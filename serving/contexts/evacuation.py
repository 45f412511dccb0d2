"""Empties the replicas that drain, as far as one gateway's contexts go.

Contexts move with their KV. A replica that leaves at a known time may be too slow for that, or its link: what is still
there shortly before starts anew elsewhere from the token log, rather than being found lost and then started anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from serving.clock import Clock
from serving.contexts.engine_set import Engine, EngineSet
from serving.contexts.running import Running
from serving.errors import EngineLost
from serving.router.policy import choose_decode
from serving.types import ClusterView, MoveReason, ReplicaId, ReplicaState

logger = logging.getLogger(__name__)

LAST_CALL_S = 1.0
"""So long before a replica leaves, contexts stop waiting for their handoff."""


@dataclass(frozen=True, slots=True)
class _LastCall:
    leaves_at_s: float
    """By the controller's clock: only to tell one deadline from another."""
    task: asyncio.Task[None]


class Evacuation:
    """What it needs of its gateway: the contexts on a replica; to move one because of a drain; to take one off its
    engine and start it elsewhere because of a drain; to run beside everything else."""

    def __init__(
        self,
        engines: EngineSet,
        *,
        clock: Clock,
        running_on: Callable[[ReplicaId], list[Running]],
        move: Callable[[str], Coroutine[Any, Any, Any]],
        replay: Callable[[Running, Engine], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ):
        self._engines, self._clock = engines, clock
        self._running_on, self._move, self._replay, self._spawn = running_on, move, replay, spawn
        self._last_calls: dict[ReplicaId, _LastCall] = {}

    def follow(self, view: ClusterView) -> None:
        """Begin, go on with or call off what the view asks for. Each view tries again what did not work before."""
        leaves_at_s = {r.replica_id: r.leaves_at_s for r in view.replicas if r.state is ReplicaState.DRAINING}
        for replica_id in list(self._last_calls):
            if leaves_at_s.get(replica_id) is None:
                self._last_calls.pop(replica_id).task.cancel()
        for engine in self._engines.all():
            replica_id = engine.replica.replica_id
            if replica_id not in leaves_at_s:
                self._call_off(replica_id)
                continue
            self._evacuate(replica_id)
            at_s = leaves_at_s[replica_id]
            if at_s is not None:
                self._plan_last_call(replica_id, at_s, left_s=at_s - view.now_s)

    def _evacuate(self, replica_id: ReplicaId) -> None:
        """Move every context away, all at once, while there is somewhere to go."""
        for running in self._running_on(replica_id):
            if self._elsewhere():
                self._spawn(self._move_quietly(running.context.request_id))

    def _elsewhere(self) -> bool:
        return choose_decode(0, self._engines.candidates()) is not None

    async def _move_quietly(self, request_id: str) -> None:
        try:
            await self._move(request_id)
        except (EngineLost, RuntimeError) as error:
            logger.warning("moving %s: %s; it stays until its engine's loss moves it", request_id, error)

    def _call_off(self, replica_id: ReplicaId) -> None:
        """The replica serves: contexts that were about to leave it because it drained stay."""
        for running in self._running_on(replica_id):
            move = running.move
            if move is not None and move.reason is MoveReason.DRAIN and move.source == replica_id:
                running.move = move if running.handing_off else None

    def _plan_last_call(self, replica_id: ReplicaId, leaves_at_s: float, *, left_s: float) -> None:
        known = self._last_calls.get(replica_id)
        if known is not None and known.leaves_at_s == leaves_at_s:
            return
        if known is not None:
            known.task.cancel()
        task = self._spawn(self._last_call(replica_id, left_s))
        self._last_calls[replica_id] = _LastCall(leaves_at_s, task)

    async def _last_call(self, replica_id: ReplicaId, left_s: float) -> None:
        await self._clock.sleep(max(0.0, left_s - LAST_CALL_S))
        engine = self._engines.get(replica_id)
        left = self._running_on(replica_id) if engine is not None and self._elsewhere() else []
        for running in left:
            assert engine is not None
            logger.warning("%s is still on %s, which leaves: replayed", running.context.request_id, replica_id)
            self._replay(running, engine)
