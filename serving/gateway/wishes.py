"""Wishes that other gateways took: each gateway moves those contexts that it owns."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from serving.engine.messages import HandOff
from serving.errors import EngineLost
from serving.types import ClusterView, MoveReason, MoveWish, ReplicaId

logger = logging.getLogger("ray.serve")


class Mover(Protocol):
    """The pool client, as far as wishes need it."""

    async def move(
        self, request_id: str, *, reason: MoveReason, destination: ReplicaId | None = None, carry_kv: bool = True
    ) -> HandOff: ...


class Wishes:
    """Grants each wish of the cluster views once, though it stands in several of them. Lives on one event loop."""

    def __init__(self, pool: Mover):
        self._pool = pool
        self._known: frozenset[str] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, view: ClusterView) -> None:
        """Take a new view. Engines answer a move in their own time, so this does not wait for them."""
        new = [wish for wish in view.wishes if wish.wish_id not in self._known]
        # A wish that has left the view does not come back, so only those of this view need be known.
        self._known = frozenset(wish.wish_id for wish in view.wishes)
        for wish in new:
            task = asyncio.get_running_loop().create_task(self._grant(wish))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _grant(self, wish: MoveWish) -> None:
        try:
            answer = await self._pool.move(
                wish.request_id,
                reason=MoveReason.REBALANCE,
                destination=wish.destination,
                carry_kv=wish.carry_kv,
            )
        except (EngineLost, RuntimeError) as error:
            logger.warning("moving %s, as another gateway asked: %s", wish.request_id, error)
            return
        if answer is not HandOff.GONE:  # the answer of everybody who does not own the context
            logger.info("moving %s, as another gateway asked: %s", wish.request_id, answer.value)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
