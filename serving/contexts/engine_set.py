"""The engines that one process can reach: links that follow the cluster view, and what each engine carries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq.asyncio

from serving.clock import Clock
from serving.engine.channel import ChannelKeys, EngineLink
from serving.engine.messages import Frames
from serving.errors import EngineLost
from serving.router.policy import Candidate
from serving.types import ClusterView, Load, Replica, ReplicaId, ReplicaState

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Engine:
    """A linked replica and this process's legs on it that have not answered yet."""

    replica: Replica
    link: EngineLink
    legs: set[str] = field(default_factory=set)
    unanswered: dict[str, tuple[int, int]] = field(default_factory=dict)
    """leg id → (prompt tokens to prefill, KV blocks it will take)."""

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
    """Links to all replicas of the view. `on_step(engine, payload)`, `on_lost(engine, reason)`."""

    def __init__(
        self,
        *,
        keys: ChannelKeys,
        clock: Clock,
        on_step: Callable[[Engine, Frames], None],
        on_lost: Callable[[Engine, str], None],
    ):
        self._keys, self._clock, self._on_step, self._on_lost = keys, clock, on_step, on_lost
        self._zmq = zmq.asyncio.Context()
        self._engines: dict[ReplicaId, Engine] = {}
        self._changed = asyncio.Event()

    def __getitem__(self, replica_id: ReplicaId) -> Engine:
        return self._engines[replica_id]

    def get(self, replica_id: ReplicaId | None) -> Engine | None:
        return None if replica_id is None else self._engines.get(replica_id)

    def all(self) -> list[Engine]:
        return list(self._engines.values())

    def candidates(self) -> list[Candidate]:
        """The replicas that may get new legs, as this process sees them now. One that never answered is none."""
        engines = (e for e in self._engines.values() if e.replica.state is ReplicaState.READY)
        return [e.candidate() for e in engines if e.link.info is not None]

    async def changed(self, timeout_s: float) -> None:
        """Wait for the set to change, at most `timeout_s`."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._announce()

    async def apply(self, view: ClusterView) -> None:
        """Follow the view: link to replicas that came, forget those that went, note new states."""
        wanted = {r.replica_id: r for r in view.replicas if r.state is not ReplicaState.GONE}
        for replica_id in [known for known in self._engines if known not in wanted]:
            self._lose(replica_id, "left the cluster")
        new = [replica for replica_id, replica in wanted.items() if replica_id not in self._engines]
        for replica in wanted.values():
            if replica.replica_id in self._engines:
                self._engines[replica.replica_id].replica = replica
        self._announce()
        await asyncio.gather(*(self._open(replica) for replica in new))

    async def _open(self, replica: Replica) -> None:
        replica_id = replica.replica_id

        def on_step(load: Load, payload: Frames) -> None:
            engine = self._engines.get(replica_id)
            if engine is not None and payload:
                self._on_step(engine, payload)

        link = EngineLink(
            address=replica.address,
            keys=self._keys,
            clock=self._clock,
            context=self._zmq,
            on_step=on_step,
            on_gone=lambda reason: self._lose(replica_id, reason),
        )
        self._engines[replica_id] = Engine(replica=replica, link=link)
        try:
            await link.opened(OPEN_TIMEOUT_S)
        except EngineLost as error:
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
        asyncio.get_running_loop().create_task(engine.link.close())

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        for engine in self.all():
            await engine.link.close()
        self._engines.clear()
        self._zmq.destroy(linger=200)
