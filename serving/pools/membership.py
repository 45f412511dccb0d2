"""Membership: which replicas exist and what state each is in. Pure; its one owner is the controller."""

from __future__ import annotations

from dataclasses import dataclass, replace

from serving.types import ClusterView, MoveWish, Replica, ReplicaId, ReplicaState

# A gateway that falls behind by more than this many wishes misses the oldest.
MAX_WISHES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """A version, the replicas by id, and wishes for gateways. Every change makes a new value with a higher version."""

    version: int = 0
    replicas: tuple[Replica, ...] = ()
    accepting: bool = True
    wishes: tuple[MoveWish, ...] = ()

    def get(self, replica_id: ReplicaId) -> Replica | None:
        return next((r for r in self.replicas if r.replica_id == replica_id), None)

    def join(self, replica: Replica) -> Membership:
        """Add a replica as STARTING. One that is already known keeps its state; one with a new address is new."""
        known = self.get(replica.replica_id)
        if known is not None and known.address == replica.address:
            return self
        others = tuple(r for r in self.replicas if r.replica_id != replica.replica_id)
        return self._next((*others, replace(replica, state=ReplicaState.STARTING)))

    def move_to(self, replica_id: ReplicaId, state: ReplicaState, *, leaves_at_s: float | None = None) -> Membership:
        """Change a replica's state, and when it leaves. Unknown replicas and what they already are change nothing."""
        known = self.get(replica_id)
        if known is None or (known.state, known.leaves_at_s) == (state, leaves_at_s):
            return self
        changed = replace(known, state=state, leaves_at_s=leaves_at_s)
        return self._next(tuple(changed if r is known else r for r in self.replicas))

    def leave(self, replica_id: ReplicaId) -> Membership:
        """Forget a replica."""
        if self.get(replica_id) is None:
            return self
        return self._next(tuple(r for r in self.replicas if r.replica_id != replica_id))

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

    def _next(self, replicas: tuple[Replica, ...]) -> Membership:
        ordered = tuple(sorted(replicas, key=lambda r: (r.pool, r.replica_id)))
        return replace(self, version=self.version + 1, replicas=ordered)
