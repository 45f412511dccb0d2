"""The lengths of requests as a few classes, and the moments that queueing needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.queueing.costs import Floats, Number, StepCosts
from planner.types import PlannerError

# Where the sorted sample is cut into classes: finer towards the tail, which the high percentiles are made of.
EDGES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.86, 0.94, 0.98, 1.0)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A sample of requests, one array element each; `cached_tokens` of a prompt are in the prefix cache."""

    prompt_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats

    @classmethod
    def from_sample(cls, sample: npt.ArrayLike, *, prefix_share: float = 0.0) -> Lengths:
        """From rows of (prompt tokens, output tokens). Raises PlannerError for an empty or odd sample.

        `prefix_share` of each prompt is found in the prefix cache; at least one token is always computed.
        """
        rows = np.asarray(sample, dtype=float)
        if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
            raise _odd("sample", rows.shape, "must be rows of (prompt tokens, output tokens)", "give at least one row")
        if not np.all(np.isfinite(rows)) or rows.min() < 1:
            raise _odd("sample", float(rows.min()), "has a length that is no number of tokens", "drop such rows")
        if not 0 <= prefix_share <= 1:
            raise _odd("prefix_share", prefix_share, "must lie between 0 and 1", "give the share of prompt tokens")
        prompt = rows[:, 0]
        cached = np.minimum(np.floor(prompt * prefix_share), prompt - 1)
        return cls(prompt_tokens=prompt, output_tokens=rows[:, 1], cached_tokens=cached)

    @cached_property
    def prompts(self) -> PromptClasses:
        new = self.prompt_tokens - self.cached_tokens
        square = self.prompt_tokens**2 - self.cached_tokens**2
        order = np.argsort(new, kind="stable")
        return PromptClasses(
            weights=np.diff(EDGES),
            tokens=_class_means(new[order]),
            squares=_class_means(square[order]),
            mean_tokens=float(new.mean()),
            mean_square=float(square.mean()),
            second_moments=(float((new**2).mean()), float((new * square).mean()), float((square**2).mean())),
        )

    @cached_property
    def outputs(self) -> Points:
        """Decode steps of a request (its first token comes from prefill), for those that decode at all."""
        steps = np.sort(self.output_tokens[self.output_tokens > 1] - 1)
        if not len(steps):
            return Points(values=np.ones(1), weights=np.ones(1))
        return Points(values=_class_means(steps), weights=np.diff(EDGES))

    @cached_property
    def mean_decode_steps(self) -> float:
        return float(self.output_tokens.mean()) - 1

    @cached_property
    def mean_context_tokens(self) -> float:
        """Context of a sequence met at a random decode step: long outputs are met more often."""
        steps = self.output_tokens - 1
        if not steps.any():
            return float(self.prompt_tokens.mean())
        return float((steps * (self.prompt_tokens + self.output_tokens / 2)).sum() / steps.sum())

    @cached_property
    def context_variance(self) -> float:
        """Variance of that context, in tokens²."""
        prompt, steps = self.prompt_tokens, self.output_tokens - 1
        if not steps.any():
            return float(prompt.var())
        square = steps * (prompt**2 + prompt * steps + steps**2 / 3)
        return max(0.0, float(square.sum() / steps.sum()) - self.mean_context_tokens**2)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Some values with weights that add up to 1."""

    values: Floats
    weights: Floats


@dataclass(frozen=True, kw_only=True)
class PromptClasses:
    """Prompts sorted by the tokens to compute, in classes; and the exact moments of the whole sample."""

    weights: Floats
    tokens: Floats
    squares: Floats
    mean_tokens: float
    mean_square: float
    second_moments: tuple[float, float, float]

    def work_s(self, costs: StepCosts) -> Floats:
        """Engine time that a prompt of each class adds to its steps: shape (configurations, classes)."""
        token_s, square_s = _column(costs.prefill_token_s), _column(costs.prefill_square_s)
        return token_s * self.tokens + square_s * self.squares

    def mean_work_s(self, costs: StepCosts) -> Number:
        return costs.prefill_token_s * self.mean_tokens + costs.prefill_square_s * self.mean_square

    def second_moment_s2(self, costs: StepCosts, *, fixed_s: Number = 0.0, more_token_s: Number = 0.0) -> Number:
        """E[S²] of S = `fixed_s` + work, where each token costs `more_token_s` besides."""
        token_s = costs.prefill_token_s + more_token_s
        square_s = costs.prefill_square_s
        tokens2, cross, squares2 = self.second_moments
        mean = token_s * self.mean_tokens + square_s * self.mean_square
        return (
            fixed_s * fixed_s
            + 2 * fixed_s * mean
            + token_s * token_s * tokens2
            + 2 * token_s * square_s * cross
            + square_s * square_s * squares2
        )


def _class_means(ordered: Floats) -> Floats:
    summed = np.concatenate(([0.0], np.cumsum(ordered)))
    below = np.interp(np.asarray(EDGES) * len(ordered), np.arange(len(summed)), summed)
    return np.diff(below) / (np.diff(EDGES) * len(ordered))


def _column(value: Number) -> Floats:
    return np.asarray(value, dtype=float)[..., None]


def _odd(key: str, value: object, problem: str, remedy: str) -> PlannerError:
    return PlannerError("lengths", key, value, problem, remedy)
