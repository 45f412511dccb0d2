"""The engines that one process can reach: links that follow the cluster view, and what each engine carries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import zmq.asyncio

from serving.clock import Clock
from serving.engine.channel import ChannelKeys, EngineLink
from serving.engine.messages import Frames
from serving.errors import EngineLost
from serving.router.policy import Candidate
from serving.types import ClusterView, Load, Replica, ReplicaId, ReplicaState

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
RELINK_INTERVAL_S = 1.0


@dataclass(slots=True)
class Engine:
    """A linked replica and this process's legs on it that have not answered yet."""

    replica: Replica
    link: EngineLink
    legs: set[str] = field(default_factory=set)
    unanswered: dict[str, tuple[int, int]] = field(default_factory=dict)
    """leg id → (prompt tokens to prefill, KV blocks it will take)."""
    stalled: bool = False
    stopping: bool = False
    """Its core was told to end: it refuses every new leg, while what it keeps can still be pulled."""

    @property
    def works(self) -> bool:
        """Whether new legs have a chance there, as far as it has told."""
        return self.link.info is not None and not self.stalled and not self.stopping

    def candidate(self) -> Candidate:
        info, load = self.replica.info, self.link.load
        free = int(info.num_kv_blocks * (1 - load.kv_usage))
        return Candidate(
            replica_id=self.replica.replica_id,
            role=self.replica.role,
            outstanding_prefill_tokens=sum(tokens for tokens, _ in self.unanswered.values()),
            batch=max(load.running + load.waiting, len(self.legs)),
            free_kv_blocks=free - sum(blocks for _, blocks in self.unanswered.values()),
            block_size_tokens=info.block_size_tokens,
            max_num_seqs=info.max_num_seqs,
        )

    def begin(self, leg_id: str, *, prefill_tokens: int, num_tokens: int) -> None:
        blocks = -(-num_tokens // self.replica.info.block_size_tokens)
        self.legs.add(leg_id)
        self.unanswered[leg_id] = (prefill_tokens, blocks)

    def end(self, leg_id: str) -> None:
        self.legs.discard(leg_id)
        self.unanswered.pop(leg_id, None)


class EngineSet:
    """Links to all replicas of the view. `on_step(engine, payload)`, `on_stalled(engine)`, `on_lost(engine, reason)`.

    An engine that only this process lost (a broken connection, a pause) is linked to anew while the view has it.
    """

    def __init__(
        self,
        *,
        keys: ChannelKeys,
        clock: Clock,
        on_step: Callable[[Engine, Frames], None],
        on_stalled: Callable[[Engine], None],
        on_lost: Callable[[Engine, str], None],
    ):
        self._keys, self._clock = keys, clock
        self._on_step, self._on_stalled, self._on_lost = on_step, on_stalled, on_lost
        self._zmq = zmq.asyncio.Context()
        self._engines: dict[ReplicaId, Engine] = {}
        self._wanted: dict[ReplicaId, Replica] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, replica_id: ReplicaId) -> Engine:
        return self._engines[replica_id]

    def get(self, replica_id: ReplicaId | None) -> Engine | None:
        return None if replica_id is None else self._engines.get(replica_id)

    def all(self) -> list[Engine]:
        return list(self._engines.values())

    def candidates(self) -> list[Candidate]:
        """The replicas that may get new legs, as this process sees them now. One that never answered is none."""
        engines = (e for e in self._engines.values() if e.replica.state is ReplicaState.READY)
        return [e.candidate() for e in engines if e.works]

    async def changed(self, timeout_s: float) -> None:
        """Wait for the set to change, at most `timeout_s`."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._announce()

    def apply(self, view: ClusterView) -> None:
        """Follow the view: link to replicas that came, forget those that went, note new states. Waits for no answer:
        a replica that cannot be reached must not hold up what the view says of others."""
        wanted = self._wanted = {r.replica_id: r for r in view.replicas if r.state is not ReplicaState.GONE}
        for replica_id in [known for known in self._engines if known not in wanted]:
            self._lose(replica_id, "left the cluster")
        new = [replica for replica_id, replica in wanted.items() if replica_id not in self._engines]
        for replica in wanted.values():
            if replica.replica_id in self._engines:
                self._engines[replica.replica_id].replica = replica
        for replica in new:
            self._open(replica)
        self._announce()

    def _open(self, replica: Replica) -> None:
        replica_id = replica.replica_id

        def on_step(load: Load, payload: Frames) -> None:
            engine = self._engines.get(replica_id)
            if engine is None:
                return
            if load.stalled is not engine.stalled:
                self._set_stalled(engine, load.stalled)
            if payload:
                self._on_step(engine, payload)

        link = EngineLink(
            address=replica.address,
            keys=self._keys,
            clock=self._clock,
            context=self._zmq,
            on_step=on_step,
            on_gone=lambda reason: self._lose(replica_id, reason),
        )
        engine = self._engines[replica_id] = Engine(replica=replica, link=link)
        self._spawn(self._welcomed(engine))

    async def _welcomed(self, engine: Engine) -> None:
        """Let everybody look again once the engine has answered; give it up when it does not."""
        replica_id = engine.replica.replica_id
        try:
            await engine.link.opened(OPEN_TIMEOUT_S)
        except EngineLost as error:
            if self._engines.get(replica_id) is engine:
                self._lose(replica_id, str(error))
        else:
            self._announce()

    def _lose(self, replica_id: ReplicaId, reason: str) -> None:
        engine = self._engines.pop(replica_id, None)
        if engine is None:
            return
        logger.warning("engine %s lost: %s", replica_id, reason)
        self._announce()
        self._on_lost(engine, reason)
        self._spawn(self._relink(engine))

    async def _relink(self, engine: Engine) -> None:
        replica_id = engine.replica.replica_id
        await engine.link.close()
        await self._clock.sleep(RELINK_INTERVAL_S)
        wanted = self._wanted.get(replica_id)
        if wanted is not None and replica_id not in self._engines:
            self._open(wanted)

    def stops(self, engine: Engine) -> None:
        """Note that its core was told to end: it gets nothing new until its link ends, too."""
        logger.warning("engine %s stops", engine.replica.replica_id)
        engine.stopping = True
        self._announce()

    def _set_stalled(self, engine: Engine, stalled: bool) -> None:
        logger.warning("engine %s %s", engine.replica.replica_id, "stands still" if stalled else "moves again")
        engine.stalled = stalled
        self._announce()
        if stalled:
            self._on_stalled(engine)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        self._wanted = {}
        for task in self._tasks:
            task.cancel()
        for engine in self.all():
            await engine.link.close()
        self._engines.clear()
        self._zmq.destroy(linger=200)
