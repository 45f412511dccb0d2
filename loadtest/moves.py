"""What Ferry tells of one request's moves, where the request asks for it (`X-Ferry-Moves: 1`). Pure.

A stream tells of each move by an SSE comment before the next chunk, and of all of them in its final usage:

    : ferry move mode=kv reason=drain at_token=57 gap_ms=23.1
    "usage": {…, "ferry": {"moves": 1, "kv": 1, "replay": 0, "gap_ms": [23.1], "recomputed_tokens": 0}}

A whole answer only has the usage, and a stream that broke only the comments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec

ASK_HEADER = ("X-Ferry-Moves", "1")
HANDOVER = "prefill_done"

_COMMENT = re.compile(
    rb"ferry move mode=(?P<mode>\w{1,64}) reason=(?P<reason>\w{1,64}) "
    rb"at_token=(?P<at_token>\d{1,15}) gap_ms=(?P<gap_ms>\d{1,15}(?:\.\d{1,15})?)"
)


# What is more is no count, and would not fit into the files.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class MovesUsage(msgspec.Struct):
    """`usage.ferry`."""

    moves: Count = 0
    kv: Count = 0
    replay: Count = 0
    gap_ms: list[float] = []
    recomputed_tokens: Count = 0


@dataclass(frozen=True, slots=True)
class ToldMove:
    """One comment, and when it came."""

    told_ns: int
    mode: str
    reason: str
    at_token: int
    gap_ms: float


@dataclass(frozen=True, slots=True)
class Moves:
    """All moves of one request, as the server tells. Gaps in milliseconds, seen from the gateway."""

    kv: int
    replay: int
    gap_ms: tuple[float, ...]
    recomputed_tokens: int | None
    """None where the usage never came."""
    told: tuple[ToldMove, ...] = ()

    @property
    def count(self) -> int:
        return self.kv + self.replay

    @property
    def others(self) -> tuple[ToldMove, ...]:
        """All that are told of but the hand-over after the prefill, which is no disturbance."""
        return tuple(move for move in self.told if move.reason != HANDOVER)


def shifted(moves: Moves, by_ns: int) -> Moves:
    """The same on another clock."""
    return replace(moves, told=tuple(replace(move, told_ns=move.told_ns + by_ns) for move in moves.told))


def told_move(comment: bytes, at_ns: int) -> ToldMove | None:
    """The move that an SSE comment tells of; None for every other comment."""
    found = _COMMENT.fullmatch(comment.strip())
    if found is None:
        return None
    return ToldMove(
        told_ns=at_ns,
        mode=found["mode"].decode(),
        reason=found["reason"].decode(),
        at_token=int(found["at_token"]),
        gap_ms=float(found["gap_ms"]),
    )


def moves_of(told: Sequence[ToldMove], usage: MovesUsage | None) -> Moves | None:
    """From what came. The usage counts where it is there; None where the server told nothing at all."""
    if usage is not None:
        return Moves(usage.kv, usage.replay, tuple(usage.gap_ms), usage.recomputed_tokens, tuple(told))
    if not told:
        return None
    modes = [move.mode for move in told]
    return Moves(modes.count("kv"), modes.count("replay"), tuple(move.gap_ms for move in told), None, tuple(told))


@dataclass(frozen=True, slots=True)
class MovesTotal:
    """Of many requests. Every request of a disaggregated deployment is handed over once, after its prefill: such moves
    are counted apart, and `requests`, `kv`, `replay` and `gap_max_ms` are of the other ones."""

    requests: int
    """That moved at least once."""
    kv: int
    replay: int
    gap_max_ms: float | None
    handovers: int
    unexplained: int
    """Moves whose reason was not told, since the answer was no stream."""
    recomputed_tokens: int
    reasons: Mapping[str, int]
    """By reason and mode."""


def total_of(each: Iterable[Moves | None]) -> MovesTotal | None:
    """None where no answer told of moves: nobody asked, or it is not Ferry."""
    known = [moves for moves in each if moves is not None]
    if not known:
        return None
    told = [move for moves in known for move in moves.told]
    others = [move for move in told if move.reason != HANDOVER]
    return MovesTotal(
        requests=sum(bool(moves.others) for moves in known),
        kv=sum(move.mode == "kv" for move in others),
        replay=sum(move.mode == "replay" for move in others),
        gap_max_ms=max((move.gap_ms for move in others), default=None),
        handovers=len(told) - len(others),
        unexplained=sum(moves.count - len(moves.told) for moves in known),
        recomputed_tokens=sum(moves.recomputed_tokens or 0 for moves in known),
        reasons=dict(sorted(Counter(f"{move.reason} {move.mode}" for move in told).items())),
    )
