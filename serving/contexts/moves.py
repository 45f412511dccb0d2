"""Decisions about moves. Pure: no clock, no I/O.

A move carries KV in two parts. Full blocks never change, so they are copied ahead, in stages, while the source goes on
decoding; each stage carries what filled up during the one before. At the cut-over only the tail is left. When stages
do not get shorter, the link is slower than the context grows, and the cut-over carries the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.types import MoveReason, ReplicaId

MAX_STAGES = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Move:
    """Why a context leaves its engine, and where to; without a destination the router chooses.

    Compared by identity: a move that was called off and a later one with the same wish are two.
    """

    reason: MoveReason
    source: ReplicaId
    destination: ReplicaId | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One copy ahead of the cut-over: the context's full blocks up to `tokens`, in `took_s`."""

    tokens: int
    took_s: float


def copies_on(num_tokens: int, stages: Sequence[Stage], *, block_size_tokens: int) -> bool:
    """Whether another stage pays. `num_tokens`: the context's prompt and output; the last one has no KV yet."""
    copied_tokens = stages[-1].tokens if stages else 0
    full_tokens = (num_tokens - 1) // block_size_tokens * block_size_tokens
    converging = len(stages) < 2 or stages[-1].took_s < stages[-2].took_s
    return full_tokens > copied_tokens and len(stages) < MAX_STAGES and converging
