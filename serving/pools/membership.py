"""Membership: which replicas exist and what state each is in. Pure; its one owner is the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serving.types import ClusterView, MoveWish, Replica, ReplicaId, ReplicaState

# A gateway that falls behind by more than this many wishes misses the oldest.
MAX_WISHES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """A version, the replicas by id, and wishes for gateways. Every change makes a new value with a higher version.

    A replica's state follows from two facts that come and go on their own: whether it has been admitted, and whether it
    was told to drain. So a drain during the warm-up outlives it, and one that was called off leaves no trace.
    """

    version: int = 0
    replicas: tuple[Replica, ...] = ()
    accepting: bool = True
    wishes: tuple[MoveWish, ...] = ()
    admitted: frozenset[ReplicaId] = frozenset()
    drains: Mapping[ReplicaId, float | None] = field(default_factory=dict)
    """Who was told to drain, and when it leaves. Replicas that are out of sight stay: they may come back any moment."""

    def get(self, replica_id: ReplicaId) -> Replica | None:
        return next((r for r in self.replicas if r.replica_id == replica_id), None)

    def join(self, replica: Replica) -> Membership:
        """Add a replica that is not admitted yet; it drains if it was told to. One that is already known stays what it
        is; one with a new address is new. To a controller that was started since, it says itself that it drains."""
        replica_id = replica.replica_id
        known = self.get(replica_id)
        if known is not None and known.address == replica.address:
            return self
        others = tuple(r for r in self.replicas if r.replica_id != replica_id)
        told = {replica_id: None} if replica.state is ReplicaState.DRAINING else {}
        return self._next(
            replicas=(*others, replica), admitted=self.admitted - {replica_id}, drains={**told, **self.drains}
        )

    def admit(self, replica_id: ReplicaId) -> Membership:
        """Let a replica serve, unless it drains."""
        if self.get(replica_id) is None or replica_id in self.admitted:
            return self
        return self._next(admitted=self.admitted | {replica_id})

    def drain(self, replica_id: ReplicaId, *, leaves_at_s: float | None = None) -> Membership:
        """Let a replica get nothing new; say again when it leaves. Unknown replicas change nothing."""
        known = self.get(replica_id)
        if known is None or (known.state, known.leaves_at_s) == (ReplicaState.DRAINING, leaves_at_s):
            return self
        return self._next(drains={**self.drains, replica_id: leaves_at_s})

    def undrain(self, replica_id: ReplicaId) -> Membership:
        """Let a replica be again what it was before it was told to drain."""
        if replica_id not in self.drains:
            return self
        return self._next(drains={name: at_s for name, at_s in self.drains.items() if name != replica_id})

    def lose(self, replica_id: ReplicaId) -> Membership:
        """A replica is out of sight. If it comes back, it must be admitted anew, and drains if it did."""
        if self.get(replica_id) is None:
            return self
        left = tuple(r for r in self.replicas if r.replica_id != replica_id)
        return self._next(replicas=left, admitted=self.admitted - {replica_id})

    def leave(self, replica_id: ReplicaId) -> Membership:
        """Forget a replica."""
        return self.lose(replica_id).undrain(replica_id)

    def stop_accepting(self) -> Membership:
        """Let no new request in; those that run go on."""
        return self if not self.accepting else replace(self, version=self.version + 1, accepting=False)

    def wish(self, wish: MoveWish) -> Membership:
        """Let all gateways know of a wish; it pushes out the oldest. One that is known already changes nothing."""
        if any(known.wish_id == wish.wish_id for known in self.wishes):
            return self
        return replace(self, version=self.version + 1, wishes=(*self.wishes, wish)[-MAX_WISHES:])

    def view(self, *, now_s: float) -> ClusterView:
        return ClusterView(
            version=self.version,
            now_s=now_s,
            replicas=self.replicas,
            accepting=self.accepting,
            wishes=self.wishes,
        )

    def _next(
        self,
        *,
        replicas: tuple[Replica, ...] | None = None,
        admitted: frozenset[ReplicaId] | None = None,
        drains: Mapping[ReplicaId, float | None] | None = None,
    ) -> Membership:
        """The next version, with what changes; every replica in the state that follows."""
        admitted = self.admitted if admitted is None else admitted
        drains = self.drains if drains is None else drains
        shown = (_shown(r, admitted, drains) for r in (self.replicas if replicas is None else replicas))
        ordered = tuple(sorted(shown, key=lambda r: (r.pool, r.replica_id)))
        return replace(self, version=self.version + 1, replicas=ordered, admitted=admitted, drains=drains)


def _shown(replica: Replica, admitted: frozenset[ReplicaId], drains: Mapping[ReplicaId, float | None]) -> Replica:
    if replica.replica_id in drains:
        return replace(replica, state=ReplicaState.DRAINING, leaves_at_s=drains[replica.replica_id])
    state = ReplicaState.READY if replica.replica_id in admitted else ReplicaState.STARTING
    return replace(replica, state=state, leaves_at_s=None)
