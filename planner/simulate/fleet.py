"""What is simulated: pools of equal engines, how requests are spread over them, and how KV gets from pool to pool."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from planner.queueing.costs import EngineRules, StepCosts
from planner.types import PlannerError


class Spread(StrEnum):
    """Which engine of a pool gets a request."""

    ROUND_ROBIN = "round robin"
    RANDOM = "random"
    LEAST_LOADED = "least loaded"  # fewest prompt tokens outstanding for prefill, fewest requests otherwise
    SHARED_QUEUE = "shared queue"  # none, until one has room


@dataclass(frozen=True, kw_only=True)
class Pool:
    """`engines` equal engines."""

    engines: int
    costs: StepCosts
    rules: EngineRules
    spread: Spread = Spread.LEAST_LOADED

    def __post_init__(self) -> None:
        if self.engines < 1:
            raise PlannerError("pool", "engines", self.engines, "must be at least 1", "give the pool an engine")


@dataclass(frozen=True, kw_only=True)
class MixedFleet:
    """Engines that prefill and decode."""

    pool: Pool


@dataclass(frozen=True, kw_only=True)
class SplitFleet:
    """Prefill engines, and decode engines to which the KV goes after the first token.

    A transfer takes `transfer_s` + `transfer_token_s` x prompt tokens. `late_first_token`: the client sees the first
    token only when the KV has arrived, as behind a proxy that waits; Ferry sends it at once.
    """

    prefill: Pool
    decode: Pool
    transfer_s: float = 0.0
    transfer_token_s: float = 0.0
    late_first_token: bool = False


Fleet = MixedFleet | SplitFleet
