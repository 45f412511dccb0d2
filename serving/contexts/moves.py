"""Decisions about moves. Pure: no clock, no I/O.

A move carries KV in two parts. Full blocks never change, so they are copied ahead while the source goes on decoding: in
stages, each as long as the link takes only shortly for it, so that nobody's cut-over waits long behind one. At the
cut-over only the tail is left. When less and less is left no more, the link is slower than the context grows, and the
cut-over carries the rest.

A carried tail has its price. Transfers have the grain of a block, so one token costs the link as much as a whole block;
and an engine notices at the end of a step that a pull is done, so where it is busy the context waits for one more step.
Where either is dear, the cut-over waits until a block has just filled up and was copied, and the destination recomputes
the token or two since then, in the step that it makes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.router.policy import Candidate, decoding
from serving.types import MoveReason, ReplicaId

PATIENCE_STAGES = 4
"""Copying ahead ends when so many stages in a row have brought its end no nearer."""
FIRST_BLOCKS = 8
"""What the first stage carries, when nothing is known of the link."""
MOST_GROWTH = 4
"""From one stage to the next."""
STAGE_S = 0.15
STAGE_STEPS = 2.0
"""How long a link should take for one stage: this many seconds, or decode steps if these take longer."""
CARRIED_WITHIN_STEPS = 0.25
"""A tail block that takes longer than this part of a decode step is not worth carrying."""
PACED_BLOCKS = 4
"""A stage of fewer blocks tells the delay of a request rather than the pace of the link."""
ASKING_STEPS = 2.0
"""What any stage takes, however quick the link: its source lends between steps, its destination pulls between steps."""
RECOMPUTED_TOKENS = 8
"""The longest tail that is recomputed: few enough to cost a decode step no more than a client could notice."""
BOUNDARY_WAIT_S = 3.0
"""The longest that a cut-over plans to wait for a block to fill up."""
LATE_AFTER_S = 0.5
"""It does not wait on after this, and after twice what it planned."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Move:
    """Why a context leaves its engine, and where to; without a destination the router chooses.

    Compared by identity: a move that was called off and a later one with the same wish are two.
    """

    reason: MoveReason
    source: ReplicaId
    destination: ReplicaId | None = None
    aimed: bool = False
    """Nobody wished for this destination: the router chose it, to have blocks copied there ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One copy ahead of the cut-over: the context's full blocks up to `tokens`, `blocks` of them new, in `took_s`.

    `left_tokens`: in blocks that were full when it ended, and not copied yet.
    """

    tokens: int
    blocks: int
    took_s: float
    left_tokens: int

    def carried_s(self, step_s: float) -> float:
        """What the link took for it, about."""
        return self.took_s - ASKING_STEPS * step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """What a replica has in its cache of a context that moves there: the first `tokens`."""

    replica_id: ReplicaId
    tokens: int

    def leaves_short_tail(self, num_tokens: int) -> bool:
        """Whether the rest may be recomputed. The context's last token has no KV anywhere."""
        return num_tokens - 1 - self.tokens <= RECOMPUTED_TOKENS


def copies_on(num_tokens: int, stages: Sequence[Stage], *, block_size_tokens: int) -> bool:
    """Whether another stage pays. `num_tokens`: the context's prompt and output; the last one has no KV yet."""
    copied_tokens = stages[-1].tokens if stages else 0
    nearer = len(stages) < PATIENCE_STAGES or stages[-1].left_tokens < stages[-PATIENCE_STAGES].left_tokens
    return full_tokens(num_tokens, block_size_tokens) > copied_tokens and nearer


def stage_blocks(stages: Sequence[Stage], step_s: float) -> int:
    """The most blocks of the next stage: what the link takes about `STAGE_S` for, as far as the last stage tells."""
    if not stages:
        return FIRST_BLOCKS
    last, wanted_s = stages[-1], max(STAGE_S, STAGE_STEPS * step_s)
    factor = wanted_s / max(last.carried_s(step_s), wanted_s / MOST_GROWTH)
    return max(PACED_BLOCKS, int(last.blocks * factor))


def full_tokens(num_tokens: int, block_size_tokens: int) -> int:
    """Tokens in full blocks of a context that has so many."""
    return (num_tokens - 1) // block_size_tokens * block_size_tokens


def waits_for_boundary(
    num_tokens: int, stages: Sequence[Stage], *, busy: bool, step_s: float, block_size_tokens: int
) -> bool:
    """Whether the cut-over should wait until the block that is being filled is full.

    `busy`: the destination has other work. `step_s`: time between two tokens of the context; 0 where it is not known
    yet. The pace of the link is that of the quickest stage: what slows one down may be gone at the cut-over.
    """
    if not stages or step_s == 0:
        return False
    paces_s = [stage.carried_s(step_s) / stage.blocks for stage in stages if stage.blocks >= PACED_BLOCKS]
    slow = bool(paces_s) and min(paces_s) > CARRIED_WITHIN_STEPS * step_s
    return (busy or slow) and time_to_boundary_s(num_tokens, step_s, block_size_tokens) <= BOUNDARY_WAIT_S


def lead_s(stages: Sequence[Stage]) -> float:
    """How long before its boundary a cut-over should ask for a clear way: a stage that is on its way then takes about
    as long as this move's own did."""
    return max(stage.took_s for stage in stages)


def time_to_boundary_s(num_tokens: int, step_s: float, block_size_tokens: int) -> float:
    """How long the block that is being filled takes to be full."""
    return (block_size_tokens - (num_tokens - 1) % block_size_tokens) * step_s


def elsewhere(source: ReplicaId | None, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Where a context could decode if not on `source`."""
    return [c for c in decoding(candidates) if c.replica_id != source]


def suiting(move: Move | None, candidates: list[Candidate], *, started: bool) -> list[Candidate]:
    """Where a moving context may go: its destination if that still decodes, else anywhere but back, else back. Without
    a token (not `started`) it may go to prefill engines too, as every prompt, and no aim of the router's binds it."""
    others = [] if move is None else elsewhere(move.source, candidates)
    if move is None or not others:
        return candidates
    wanted = [c for c in others if c.replica_id == move.destination and (started or not move.aimed)]
    return wanted or (others if started else [c for c in candidates if c.replica_id != move.source])
