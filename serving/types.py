"""Nouns that every room of serving shares. Frozen values; whoever needs another state makes another value."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

ReplicaId = str


class PoolRole(StrEnum):
    """What the engines of a pool are for."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class ReplicaState(StrEnum):
    """Where a replica is in its life. Only READY replicas get new legs."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class MoveReason(StrEnum):
    """Why a context left an engine."""

    PREFILL_DONE = "prefill_done"
    DRAIN = "drain"
    REBALANCE = "rebalance"
    ENGINE_LOST = "engine_lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class KvIdentity:
    """How other engines reach this engine's KV: NIXL's side channel and the shape of the transfer."""

    engine_id: str
    host: str
    port: int
    tp_size: int
    pp_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What an engine is, fixed for its life."""

    block_size_tokens: int
    num_kv_blocks: int
    kv_block_bytes: int
    max_num_seqs: int
    max_model_len: int
    kv: KvIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One engine replica as the cluster knows it."""

    replica_id: ReplicaId
    pool: str
    role: PoolRole
    state: ReplicaState
    address: str
    node_id: str
    pid: int
    info: EngineInfo
    leaves_at_s: float | None = None
    """While it drains: when it will be gone, by the controller's clock; None where nobody knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveWish:
    """Somebody wants a context to move; whichever gateway owns it does so, once per `wish_id`.

    Without a destination the router chooses one; without `carry_kv` the token log is replayed there.
    """

    wish_id: str
    request_id: str
    destination: ReplicaId | None = None
    carry_kv: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterView:
    """A snapshot of the membership. `version` rises with every change; `accepting` ends before a shutdown; `now_s` is
    the controller's clock when the snapshot was taken.

    `wishes` are the latest, oldest first. They stay for a while, so that each gateway sees every one.
    """

    version: int = 0
    now_s: float = field(default=0.0, compare=False)
    replicas: tuple[Replica, ...] = field(default=())
    accepting: bool = True
    wishes: tuple[MoveWish, ...] = field(default=())

    def ready(self) -> tuple[Replica, ...]:
        """Replicas that may get new legs."""
        return tuple(r for r in self.replicas if r.state is ReplicaState.READY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What an engine carries now, as its scheduler last reported it."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    stalled: bool = False
    """It has work and makes no progress: its contexts go on elsewhere until it answers again."""
