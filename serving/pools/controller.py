"""The controller: owns the membership, warms engines for each other, and tells everybody what there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import zmq.asyncio

from serving.clock import Clock
from serving.engine.channel import ChannelKeys, EngineLink
from serving.errors import EngineLost
from serving.pools.membership import Membership
from serving.types import ClusterView, MoveWish, Replica, ReplicaId, ReplicaState

logger = logging.getLogger(__name__)

LINK_TIMEOUT_S = 30.0
WARM_TIMEOUT_S = 90.0
# Gateways report each second. One that has not for this long has stopped.
REPORT_LIFETIME_S = 10.0


@dataclass(frozen=True, kw_only=True)
class GatewayReport:
    """What a gateway last said of itself. `contexts` as `PoolClient.contexts` shows them."""

    exposition: str
    in_flight: int
    contexts: tuple[dict[str, Any], ...] = ()


class Controller:
    """One per cluster. Everything runs on one event loop; only this class writes the membership."""

    def __init__(self, *, keys: ChannelKeys, clock: Clock, settle_s: float):
        self._keys, self._clock = keys, clock
        # A controller that was restarted knows nothing until the replicas have announced themselves again.
        self._settled_at_s = clock.now_s() + settle_s
        self._zmq = zmq.asyncio.Context()
        self._membership = Membership()
        self._links: dict[ReplicaId, EngineLink] = {}
        self._reports: dict[str, tuple[float, GatewayReport]] = {}  # with the instant of their arrival
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def announce(self, replica: Replica) -> ReplicaState:
        """A replica says that it exists; it repeats this while it lives. It learns what state it is in, and says that
        the next time: a controller that was restarted knows from there who drains."""
        before = self._membership
        self._set(self._membership.join(replica))
        if self._membership is not before:
            self._background(self._admit(replica))
        known = self._membership.get(replica.replica_id)
        assert known is not None
        return known.state

    async def leave(self, replica_id: ReplicaId) -> None:
        """A replica says goodbye."""
        self._set(self._membership.leave(replica_id))
        await self._unlink(replica_id, "said goodbye")

    async def drain(self, replica_id: ReplicaId, deadline_s: float | None = None) -> bool:
        """Give the replica nothing new and move what runs there away, by `deadline_s` from now where that is given;
        False when there is no such replica."""
        leaves_at_s = None if deadline_s is None else self._clock.now_s() + deadline_s
        self._set(self._membership.drain(replica_id, leaves_at_s=leaves_at_s))
        return self._membership.get(replica_id) is not None

    async def undrain(self, replica_id: ReplicaId) -> bool:
        """Let a draining replica serve again, as soon as it is admitted; False when there is no such replica."""
        before = self._membership
        self._set(before.undrain(replica_id))
        return before.get(replica_id) is not None or self._membership is not before

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView:
        """The view as soon as its version differs from `known_version`, or as it is after `timeout_s`."""
        await self._clock.sleep(max(0.0, self._settled_at_s - self._clock.now_s()))
        deadline_s = self._clock.now_s() + timeout_s
        while self._membership.version == known_version and (left_s := deadline_s - self._clock.now_s()) > 0:
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                break
        return self._membership.view(now_s=self._clock.now_s())

    async def report(self, gateway_id: str, report: GatewayReport) -> None:
        self._reports[gateway_id] = (self._clock.now_s(), report)

    async def gateway_expositions(self) -> list[str]:
        """The last metrics of all gateways. One keeper, so that a counter never seems to go back."""
        return [report.exposition for report in self._gateways().values()]

    async def contexts(self) -> list[dict[str, Any]]:
        """The contexts of all gateways, as those last reported them; each names its `gateway`."""
        return [
            {"gateway": gateway_id, **context}
            for gateway_id, report in self._gateways().items()
            for context in report.contexts
        ]

    async def pass_on(self, wish: MoveWish, asked_by: str) -> bool:
        """Tell all gateways of a wish; False when the last reports of those but `asked_by` do not have the context."""
        owned = any(
            context["context"] == wish.request_id
            for gateway_id, report in self._gateways().items()
            if gateway_id != asked_by
            for context in report.contexts
        )
        if owned:
            self._set(self._membership.wish(wish))
        return owned

    def _gateways(self) -> dict[str, GatewayReport]:
        """The last reports of the gateways that live; forgets those of the others."""
        oldest_s = self._clock.now_s() - REPORT_LIFETIME_S
        self._reports = {name: (at_s, report) for name, (at_s, report) in self._reports.items() if at_s >= oldest_s}
        return {name: report for name, (_, report) in self._reports.items()}

    async def stop_accepting(self) -> None:
        """The deployment is about to stop: gateways refuse new requests, running ones finish."""
        self._set(self._membership.stop_accepting())

    async def status(self) -> dict[str, Any]:
        """The cluster for people: one entry per replica."""
        gateways = self._gateways()
        return {
            "version": self._membership.version,
            "replicas": [self._describe(replica) for replica in self._membership.replicas],
            "gateways": sorted(gateways),
            "in_flight": sum(report.in_flight for report in gateways.values()),
        }

    def _describe(self, replica: Replica) -> dict[str, Any]:
        link = self._links.get(replica.replica_id)
        load = asdict(link.load) if link is not None else {}
        info = replica.info
        return {
            "replica": replica.replica_id,
            "pool": replica.pool,
            "role": replica.role.value,
            "state": replica.state.value,
            "node": replica.node_id,
            "pid": replica.pid,
            "kv_blocks": info.num_kv_blocks,
            "block_size_tokens": info.block_size_tokens,
            "max_num_seqs": info.max_num_seqs,
            **load,
        }

    async def _admit(self, replica: Replica) -> None:
        """Link to a new replica, make it and the others known to each other, and let it serve."""
        replica_id = replica.replica_id
        try:
            link = await self._link(replica)
            await self._warm(replica, link)
        except (EngineLost, RuntimeError) as error:
            logger.error("replica %s is not admitted: %s", replica_id, error)
            if self._is_current(replica):
                await self._drop(replica_id, str(error))
            return
        if self._is_current(replica):
            self._set(self._membership.admit(replica_id))

    def _is_current(self, replica: Replica) -> bool:
        """False once the replica left, or came back at another address."""
        known = self._membership.get(replica.replica_id)
        return known is not None and known.address == replica.address

    async def _link(self, replica: Replica) -> EngineLink:
        replica_id = replica.replica_id

        def drop(reason: str) -> None:
            self._background(self._drop(replica_id, reason))

        if (older := self._links.pop(replica_id, None)) is not None:
            await older.close()
        link = self._links[replica_id] = EngineLink(
            address=replica.address,
            keys=self._keys,
            clock=self._clock,
            context=self._zmq,
            on_step=lambda load, payload: None,
            on_gone=drop,
        )
        await link.opened(LINK_TIMEOUT_S)
        return link

    async def _warm(self, replica: Replica, link: EngineLink) -> None:
        """First contact of two engines costs seconds; have it before any request needs it, in both directions."""
        peers = [r for r in self._membership.replicas if r.replica_id != replica.replica_id]
        if not peers:
            return
        seconds: list[float | None] = await link.call(
            "warm_peers", [asdict(r.info.kv) for r in peers], timeout_s=WARM_TIMEOUT_S
        )
        await asyncio.gather(*(self._warm_back(r, replica) for r in peers))
        met = {peer.replica_id: took_s for peer, took_s in zip(peers, seconds, strict=True)}
        logger.info("replica %s met its peers in (s; None: could not): %s", replica.replica_id, met)

    async def _warm_back(self, peer: Replica, replica: Replica) -> None:
        link = self._links.get(peer.replica_id)
        if link is None:
            return
        try:
            await link.call("warm_peers", [asdict(replica.info.kv)], timeout_s=WARM_TIMEOUT_S)
        except (EngineLost, RuntimeError) as error:
            logger.warning("%s did not meet %s: %s", peer.replica_id, replica.replica_id, error)

    async def _drop(self, replica_id: ReplicaId, reason: str) -> None:
        """A replica does not answer. It may live: then it announces itself again."""
        self._set(self._membership.lose(replica_id))
        await self._unlink(replica_id, reason)

    async def _unlink(self, replica_id: ReplicaId, reason: str) -> None:
        logger.warning("replica %s dropped: %s", replica_id, reason)
        link = self._links.pop(replica_id, None)
        if link is not None:
            await link.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for link in self._links.values():
            await link.close()
        self._zmq.destroy(linger=0)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside everything else; the set keeps the task from being collected while it runs."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _set(self, membership: Membership) -> None:
        if membership is self._membership:
            return
        self._membership = membership
        self._changed.set()
        self._changed = asyncio.Event()
