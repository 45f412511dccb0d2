"""How long contexts are while they run, from the lengths of requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.types import PlannerError

# A request is looked at in the middle of each fifth of its answer.
INSTANTS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True)
class ContextLengths:
    """Requests of a workload as pairs of input and output tokens, all equally frequent."""

    requests: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise PlannerError("workload", "requests", (), "no lengths are given", "give at least one pair")
        for pair in self.requests:
            if pair[0] < 1 or pair[1] < 1:
                raise PlannerError("workload", "requests", pair, "lengths must be at least 1", "correct the pair")

    @property
    def longest_tokens(self) -> int:
        return max(input_tokens + output_tokens for input_tokens, output_tokens in self.requests)

    def at_work(self) -> Iterator[tuple[int, float]]:
        """Context lengths at a random instant, with weights that sum to 1: long answers are met more often."""
        total = sum(output_tokens for _, output_tokens in self.requests)
        for input_tokens, output_tokens in self.requests:
            for instant in INSTANTS:
                tokens = input_tokens + math.ceil(instant * output_tokens)
                yield tokens, output_tokens / (total * len(INSTANTS))

    def moments(self, measure: Callable[[int], float]) -> tuple[float, float]:
        """Mean and standard deviation of `measure(context tokens)` over running contexts."""
        values = [(measure(tokens), weight) for tokens, weight in self.at_work()]
        mean = sum(value * weight for value, weight in values)
        variance = sum((value - mean) ** 2 * weight for value, weight in values)
        return mean, math.sqrt(variance)


def context_lengths(*requests: tuple[int, int]) -> ContextLengths:
    """`context_lengths((1000, 200), (4000, 100))`. Raises PlannerError for none or lengths below 1."""
    return ContextLengths(requests=requests)


def contexts_that_fit(blocks: int, mean_blocks: float, deviation_blocks: float, *, sigmas: float = 0.0) -> int:
    """The most contexts whose blocks stay within `blocks`, with `sigmas` standard deviations of their sum to spare.

    Solves n·mean + sigmas·√n·deviation = blocks for √n.
    """
    spread = sigmas * deviation_blocks
    root = (math.sqrt(spread**2 + 4 * mean_blocks * max(0, blocks)) - spread) / (2 * mean_blocks)
    # A hair more, so that an exact fit does not fall to the number below by rounding.
    return math.floor(root**2 + 1e-9)
