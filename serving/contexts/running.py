"""A context while it runs: with the request that it came from, its move, and what its metrics need."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.engine import EngineCoreRequest

from serving.contexts.context import Context
from serving.contexts.move_log import MoveLog
from serving.contexts.moves import Ahead, Move
from serving.metrics import GatewayMetrics
from serving.types import MoveReason

STEP_SMOOTHING = 0.2


@dataclass(slots=True)
class Running:
    """One entry of a gateway's books."""

    context: Context
    request: EngineCoreRequest
    arrived_s: float
    last_token_s: float = 0.0
    step_s: float = 0.0
    """Smoothed time between two tokens, moves left out; 0 until two have come."""
    move: Move | None = None
    """From the wish to move until the next leg begins."""
    handing_off: bool = False
    """The source was asked to hand off: too late to call the move off."""
    ahead: Ahead | None = None
    """What was copied ahead of the move, and where to."""
    at_boundary: bool = False
    """The cut-over waited until a block was full and copied: the destination recomputes a short tail."""
    handed_off: MoveReason | None = None
    """Why the last leg handed off, until the next one begins: only then it shows whether its KV is pulled."""
    pulls_from: str | None = None
    """Engine id (NIXL's) that the current leg pulls its KV from, until it answers."""
    moved: bool = False
    """True from a handoff or loss until the next token: the gap then is the move's."""
    log: MoveLog | None = None
    """For a client that wants to hear of moves."""

    @property
    def may_hand_off(self) -> bool:
        """False for a prompt whose logprobs are wanted: vLLM recomputes it wherever it runs, so a move carries
        nothing."""
        params = self.request.sampling_params
        return params is not None and params.prompt_logprobs is None

    def arrived(self, now_s: float) -> float:
        """Take the time of a token; returns the gap before it, since the request came for the first token."""
        gap_s = now_s - (self.last_token_s or self.arrived_s)
        if self.last_token_s and not self.moved:
            self.step_s = gap_s if self.step_s == 0.0 else self.step_s + STEP_SMOOTHING * (gap_s - self.step_s)
        self.last_token_s, self.moved = now_s, False
        return gap_s

    def tell_move(self, metrics: GatewayMetrics, *, reason: MoveReason, mode: str, recomputed_tokens: int) -> None:
        """Count a move, and tell a client that wants to hear of it."""
        metrics.moved(reason=reason, mode=mode)
        metrics.recomputed_tokens.inc(recomputed_tokens)
        if self.log is not None:
            self.log.left(self.context, reason=reason, mode=mode, recomputed_tokens=recomputed_tokens)

    def is_on(self, leg_id: str, move: Move) -> bool:
        """True while that leg runs and that move is still wanted."""
        return self.context.leg_id == leg_id and self.context.replica_id is not None and self.move is move
