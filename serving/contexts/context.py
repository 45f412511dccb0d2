"""A Context: one running request, its token log, and the leg that it is on. Pure: no clock, no I/O.

The gateway owns it. Engines come and go beneath it, one leg at a time; a leg has an epoch, and what an older leg
still says is dropped. So tokens enter the log exactly once, in order, whatever engines do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from serving.types import ReplicaId

EPOCH_MARK = "#"


class Verdict(Enum):
    """What becomes of an engine's output for a context."""

    FENCED = "fenced"
    """From an older leg, or from none: drop it."""
    CONTINUES = "continues"
    """Tokens for the client; the leg goes on."""
    HANDS_OFF = "hands_off"
    """Tokens for the client; the leg ended and the context goes on elsewhere."""
    FINISHED = "finished"
    """The last tokens of the context."""


@dataclass(slots=True)
class Context:
    """One running request."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    epoch: int = 0
    replica_id: ReplicaId | None = None
    handoff_at_tokens: int | None = None
    output_token_ids: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def leg_id(self) -> str:
        """Id of the current leg, unique over all engines and epochs."""
        return f"{self.request_id}{EPOCH_MARK}{self.epoch}"

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return self.num_prompt_tokens + len(self.output_token_ids)

    def begin_leg(self, replica_id: ReplicaId, *, handoff_at_tokens: int | None) -> str:
        """Put the context on an engine. Output of every older leg is fenced from now on."""
        assert not self.finished, "a finished context has no further leg"
        assert handoff_at_tokens is None or handoff_at_tokens > len(self.output_token_ids)
        self.epoch += 1
        self.replica_id = replica_id
        self.handoff_at_tokens = handoff_at_tokens
        return self.leg_id

    def accept(self, leg_id: str, token_ids: list[int], *, ended: bool, kv_kept: bool) -> Verdict:
        """Take an engine's output into the log.

        `ended`: the engine is done with the leg. `kv_kept`: it kept the KV blocks for a pull, which it does only
        for a leg that reached its handoff limit and nothing else.
        """
        if self.finished or self.replica_id is None or leg_id != self.leg_id:
            return Verdict.FENCED
        self.output_token_ids += token_ids
        if not ended:
            return Verdict.CONTINUES
        self.replica_id = None
        if kv_kept:
            return Verdict.HANDS_OFF
        self.finished = True
        return Verdict.FINISHED

    def detach(self) -> None:
        """Take the context off its engine: whatever the leg still says is fenced."""
        self.replica_id = None

    def abandon(self) -> None:
        """End the context without further output: aborted, or failed."""
        self.finished = True
        self.replica_id = None


def request_id_of(leg_id: str) -> str:
    """The request that a leg belongs to."""
    return leg_id.rpartition(EPOCH_MARK)[0]
