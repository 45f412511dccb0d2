"""Which loads tell most about an engine, for as few requests as possible. Pure.

A step costs something of its own, something per sequence, per token of context and per token of prompt, and a request
something besides. So the corners come first: one request and as many as fit, short prompts and long ones. They fix the
straight lines; what lies between them shows where lines bend (prompts that fill the budget, weights that are multiplied
rather than read).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.types import LoadTestError

LEAST_POINTS, MOST_POINTS = 6, 12
SHORT_TOKENS = 32
LONGEST_TOKENS = 4096  # prompts beyond it cost time and tell little more
TEMPLATE_TOKENS = 64  # what a chat template may add to a prompt
TOKENS_PER_WORD = 1.1  # at most, for the words that we send
UNKNOWN_CONCURRENCY = 32
LONE_REQUESTS = 6
ROUNDS = 4  # requests per client; the first ones come all at once
APART = 0.6  # how far outputs of the mixed loads are drawn apart, so that clients do not keep step

# (place between one request and as many as fit, place between short and long prompts, drawn apart?); best first.
PLACES: tuple[tuple[float, float, bool], ...] = (
    (0.0, 0.0, False),  # a step, and a request
    (1.0, 0.0, False),  # a sequence
    (0.0, 1.0, False),  # a token of prompt
    (1.0, 1.0, False),  # a token of context; full budgets
    (0.5, 0.5, True),  # prompts among answers: what users see
    (0.0, 0.5, False),  # how prompts bend
    (0.5, 0.0, False),  # how batches bend
    (1.0, 0.5, True),
    (0.5, 1.0, False),
    (0.25, 0.5, True),
    (0.75, 0.0, False),
    (0.75, 0.75, True),
)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far loads may go. None: nobody said."""

    max_model_len_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_tokens: int | None = None

    def concurrency(self, tokens: int) -> int:
        """The most requests of `tokens` that run side by side; a load beyond it would only queue."""
        fit = self.kv_tokens // tokens if self.kv_tokens is not None else UNKNOWN_CONCURRENCY
        return max(1, min(fit, self.max_num_seqs if self.max_num_seqs is not None else UNKNOWN_CONCURRENCY))


@dataclass(frozen=True, slots=True)
class Trial:
    """One load: `concurrency` clients, `requests` in all. Outputs are drawn evenly, down from `osl` by `spread`."""

    isl: int
    osl: int
    concurrency: int
    requests: int
    spread: float = 0.0


def choose_trials(reach: Reach, *, count: int = 8, osl: int = 64) -> tuple[Trial, ...]:
    """The `count` loads that tell most, quiet ones first. Raises LoadTestError if no prompt would fit."""
    if not LEAST_POINTS <= count <= MOST_POINTS:
        raise LoadTestError(f"--points is {count}: {LEAST_POINTS} to {MOST_POINTS} points make a profile")
    room = (reach.max_model_len_tokens or LONGEST_TOKENS) - osl - TEMPLATE_TOKENS
    if reach.kv_tokens is not None:
        room = min(room, reach.kv_tokens - osl - TEMPLATE_TOKENS)
    longest = min(LONGEST_TOKENS, int(room / TOKENS_PER_WORD))
    if longest < 2 * SHORT_TOKENS:
        raise LoadTestError(f"answers of {osl} tokens leave {max(0, longest)} tokens for prompts: lower --osl")
    trials = (_trial(reach, SHORT_TOKENS, longest, osl, *place) for place in PLACES)
    chosen = list(dict.fromkeys(trials))[:count]  # a small engine's places may fall together
    return tuple(sorted(chosen, key=lambda trial: (trial.concurrency, trial.isl)))


def _trial(reach: Reach, short: int, longest: int, osl: int, load: float, length: float, apart: bool) -> Trial:
    isl = _between(short, longest, length)
    concurrency = _between(1, reach.concurrency(isl + osl + TEMPLATE_TOKENS), load)
    requests = LONE_REQUESTS if concurrency == 1 else ROUNDS * concurrency
    return Trial(isl, osl, concurrency, requests, APART if apart and concurrency > 1 else 0.0)


def _between(low: int, high: int, place: float) -> int:
    """Even steps of `place` multiply."""
    return round(low * math.pow(high / low, place))
