"""Samples of lengths and costs of a kind that the published tables have, for tests and measurements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from planner.queueing import EngineRules, StepCosts
from planner.simulate import Requests, draw_arrivals, draw_requests

# A 70B model on four H100, nearly: weights 11 ms, 60 µs a prompt token, 24 ns a context token.
COSTS = StepCosts(step_s=0.011, prefill_token_s=60e-6, sequence_s=15e-6, kv_token_s=24e-9)
RULES = EngineRules(max_num_batched_tokens=2048, max_num_seqs=256, kv_blocks=60_000)


def lognormal(mean: float, cv: float, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    spread = np.sqrt(np.log1p(cv * cv))
    return np.maximum(1.0, np.round(rng.lognormal(np.log(mean) - spread**2 / 2, spread, count)))


def sample(
    prompt: float, output: float, *, prompt_cv: float = 1.0, output_cv: float = 1.0, count: int = 5_000
) -> npt.NDArray[np.float64]:
    """Rows of (prompt tokens, output tokens), lognormal and independent."""
    rng = np.random.default_rng(0)
    prompts = np.minimum(lognormal(prompt, prompt_cv, count, rng), 32_000)
    return np.column_stack([prompts, np.minimum(lognormal(output, output_cv, count, rng), 8_000)])


CHAT = sample(500, 250)
RAG = sample(3_000, 200, prompt_cv=0.6)
REASONING = sample(400, 2_000, output_cv=0.7)


def arriving(
    rows: npt.NDArray[np.float64], count: int, *, rate_rps: float, arrival_scv: float = 1.0, seed: int = 1
) -> Requests:
    arrivals = draw_arrivals(count, rate_rps=rate_rps, arrival_scv=arrival_scv, seed=seed)
    return replace(draw_requests(rows, count, seed=seed), arrival_s=arrivals)
