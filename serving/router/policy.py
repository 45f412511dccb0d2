"""Router v1: where a leg goes. Pure functions of the candidates' loads.

A prefill engine is as good as its queue is short, counted in prompt tokens: prefill is compute-bound and tokens take
their turn. A decode engine is as good as its batch is small, among those that have the blocks: a step's time grows
with the batch, and a context that does not fit would push another out.

Every engine can do both. Where no engine is left that decodes, prefill engines do: worse than promised, but no stream
is lost while its pool is being replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.types import PoolRole, ReplicaId


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A READY replica with what the choosing gateway knows of it.

    `outstanding_prefill_tokens`: prompt tokens sent there and not yet answered by a token. `batch`: contexts
    decoding or waiting there. `free_kv_blocks` is what the engine last reported, less what was sent since.
    """

    replica_id: ReplicaId
    role: PoolRole
    outstanding_prefill_tokens: int
    batch: int
    free_kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` and the next one."""
        return -(-(num_tokens + 1) // self.block_size_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A choice and its reason. `hands_off`: the context leaves after its first token."""

    replica_id: ReplicaId
    hands_off: bool
    reason: str


def choose_first(
    num_prompt_tokens: int, candidates: Sequence[Candidate], *, disaggregate_from_tokens: int
) -> Route | None:
    """Where a new context starts; None when no engine can take it.

    Long prompts start on a prefill engine and leave after token 1. Short ones run whole where they decode: their
    prefill costs a decode batch less than the move would cost them. Without a decode engine to go to, a context
    stays on a mixed or a prefill one; without prefill engines, decode engines prefill.
    """
    decoders = decoding(candidates)
    prefillers = [c for c in _with_roles(candidates, PoolRole.PREFILL) if c not in decoders]
    if not decoders:
        return None
    if prefillers and num_prompt_tokens >= disaggregate_from_tokens:
        best = min(prefillers, key=lambda c: (c.outstanding_prefill_tokens, c.batch, c.replica_id))
        return Route(
            replica_id=best.replica_id,
            hands_off=True,
            reason=f"{best.outstanding_prefill_tokens} prefill tokens ahead",
        )
    whole = choose_decode(num_prompt_tokens, decoders)
    assert whole is not None
    return whole


def choose_decode(num_tokens: int, candidates: Sequence[Candidate]) -> Route | None:
    """Where a context of `num_tokens` decodes; None when there is no engine at all.

    When no engine has the blocks, the one with the most free takes it: it queues there rather than failing here.
    """
    decoders = decoding(candidates)
    if not decoders:
        return None
    fitting = [c for c in decoders if c.free_kv_blocks >= c.blocks_for(num_tokens)]
    if not fitting:
        best = max(decoders, key=lambda c: (c.free_kv_blocks, -c.batch, c.replica_id))
        return Route(replica_id=best.replica_id, hands_off=False, reason="no engine has the blocks; most free")
    best = min(
        fitting,
        key=lambda c: (c.batch / c.max_num_seqs, c.outstanding_prefill_tokens, -c.free_kv_blocks, c.replica_id),
    )
    return Route(replica_id=best.replica_id, hands_off=False, reason=f"batch {best.batch} of {best.max_num_seqs}")


def decoding(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that decode: by their role, or all where none has it."""
    return _with_roles(candidates, PoolRole.DECODE, PoolRole.MIXED) or list(candidates)


def _with_roles(candidates: Sequence[Candidate], *roles: PoolRole) -> list[Candidate]:
    return [c for c in candidates if c.role in roles]
