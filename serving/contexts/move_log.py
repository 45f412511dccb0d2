"""What a client that asks is told of its request's moves: one log per HTTP request, shared by all its contexts.

vLLM's application stands between the HTTP door and the pool client, so the log travels in a context variable; tasks
that vLLM starts for the request inherit it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from serving.contexts.context import Context


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveRecord:
    """One move. `at_token` counts the output tokens of its context before it.

    `gap_s` runs from the last token before the move, or from the request's arrival when there was none, to the first
    token after it. Moves that follow each other without a token between them share their gap.
    """

    reason: str
    mode: str
    at_token: int
    recomputed_tokens: int
    gap_s: float = 0.0


@dataclass(slots=True)
class MoveLog:
    """`completed` holds the moves after which a token came, in that order. A move that no token follows is left out."""

    completed: list[MoveRecord] = field(default_factory=list)
    _under_way: dict[str, list[MoveRecord]] = field(default_factory=dict)

    def left(self, context: Context, *, reason: str, mode: str, recomputed_tokens: int) -> None:
        """A context left its engine."""
        move = MoveRecord(
            reason=reason,
            mode=mode,
            at_token=len(context.output_token_ids),
            recomputed_tokens=recomputed_tokens,
        )
        self._under_way.setdefault(context.request_id, []).append(move)

    def arrived(self, context: Context, *, gap_s: float) -> None:
        """The first token after the context's last moves is here."""
        self.completed += [replace(move, gap_s=gap_s) for move in self._under_way.pop(context.request_id, ())]


wanted_log: ContextVar[MoveLog | None] = ContextVar("wanted_log", default=None)
"""The log of the HTTP request that is being served, when its client wants one."""
