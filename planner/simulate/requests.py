"""The requests of a run: arrays drawn from a seed, so that rival configurations meet the very same traffic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.queueing.costs import Floats
from planner.types import PlannerError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Requests:
    """One element per request, in order of arrival. `arrival_s` is empty in a closed loop: answers bring the next."""

    prompt_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    arrival_s: Floats

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def __post_init__(self) -> None:
        if not len(self) or min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise PlannerError(
                "requests", "tokens", len(self), "needs requests of at least one token each way", "check the lengths"
            )
        if len(self.arrival_s) and (len(self.arrival_s) != len(self) or np.any(np.diff(self.arrival_s) < 0)):
            raise PlannerError(
                "requests", "arrival_s", len(self.arrival_s), "must be one time per request, in order", "sort the trace"
            )


def draw_requests(
    sample: npt.ArrayLike, count: int, *, seed: int, prefix_share: float = 0.0, block_size_tokens: int = 16
) -> Requests:
    """`count` requests with lengths drawn from rows of (prompt tokens, output tokens); no arrival times yet.

    `prefix_share` of each prompt is found in the prefix cache, in whole blocks. A longer run with the same seed
    starts with the same requests.
    """
    rows = np.asarray(sample, dtype=np.int64)
    # One uniform number per request: draws of integers would not nest when `count` grows.
    picks = np.random.default_rng([seed, 1]).random(count)
    prompt, output = rows[(picks * len(rows)).astype(np.int64)].T
    cached = (prompt * prefix_share).astype(np.int64) // block_size_tokens * block_size_tokens
    return Requests(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=np.minimum(cached, prompt - 1),
        arrival_s=np.empty(0),
    )


def draw_arrivals(count: int, *, rate_rps: float, arrival_scv: float = 1.0, seed: int) -> Floats:
    """Arrival times with gamma gaps: `arrival_scv` = variance / mean², 1 is Poisson, 0 a metronome."""
    if rate_rps <= 0 or arrival_scv < 0:
        raise PlannerError("arrivals", "rate_rps", rate_rps, "must be above zero", "give a rate and a burstiness >= 0")
    rng = np.random.default_rng([seed, 2])
    if arrival_scv == 0:
        gaps = np.ones(count)
    elif arrival_scv == 1:
        gaps = rng.exponential(size=count)
    else:
        gaps = rng.gamma(1 / arrival_scv, arrival_scv, size=count)
    return np.cumsum(gaps) / rate_rps
