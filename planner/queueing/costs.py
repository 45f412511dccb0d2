"""What one engine step costs, and the rules by which vLLM fills it: the two values that all queueing starts from.

A step that computes `P` prompt tokens in chunks `(start, end]`, and one token of each of `B` sequences whose contexts
add up to `K` tokens, takes

    step_s + prefill_token_s P + prefill_square_s Σ(end² - start²) + sequence_s (B + chunks) + kv_token_s K

Every field may be one number or an array over configurations; arrays broadcast against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.types import PlannerError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Number = float | Floats


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Seconds; `overhead_s` is once per request, outside the engine (HTTP, tokenizer, gateway)."""

    step_s: Number
    prefill_token_s: Number = 0.0
    sequence_s: Number = 0.0
    kv_token_s: Number = 0.0
    prefill_square_s: Number = 0.0
    overhead_s: Number = 0.0

    def __post_init__(self) -> None:
        _refuse_negative(self, "step costs")

    def row(self, index: int) -> StepCosts:
        """The costs of one configuration."""
        return StepCosts(**{field.name: _pick(getattr(self, field.name), index) for field in fields(self)})

    def prefill_s(self, tokens: Number, *, cached_tokens: Number = 0.0) -> Number:
        """Engine time that a prompt adds to the steps it rides in; `cached_tokens` of it are in the prefix cache."""
        square = tokens * tokens - cached_tokens * cached_tokens
        return self.prefill_token_s * (tokens - cached_tokens) + self.prefill_square_s * square


@dataclass(frozen=True, kw_only=True)
class EngineRules:
    """vLLM's settings that decide who is in a step.

    `kv_blocks` counts usable blocks. `async_scheduling`: vLLM schedules a step while the one before runs, so that a
    prompt or a freed place is seen one step later.
    """

    max_num_batched_tokens: Number
    max_num_seqs: Number
    kv_blocks: Number
    block_size_tokens: Number = 16
    async_scheduling: bool = True

    def __post_init__(self) -> None:
        _refuse_negative(self, "engine rules")
        if np.any(np.asarray(self.max_num_batched_tokens) < np.asarray(self.max_num_seqs)):
            raise PlannerError(
                "engine rules",
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                "a step must have a token for each of max_num_seqs sequences, as vLLM demands",
                "raise max_num_batched_tokens or lower max_num_seqs",
            )

    @property
    def kv_tokens(self) -> Number:
        return self.kv_blocks * self.block_size_tokens

    @property
    def lag_steps(self) -> int:
        return 1 if self.async_scheduling else 0

    def row(self, index: int) -> EngineRules:
        """The rules of one configuration."""
        return EngineRules(
            max_num_batched_tokens=_pick(self.max_num_batched_tokens, index),
            max_num_seqs=_pick(self.max_num_seqs, index),
            kv_blocks=_pick(self.kv_blocks, index),
            block_size_tokens=_pick(self.block_size_tokens, index),
            async_scheduling=self.async_scheduling,
        )


def _pick(value: Number, index: int) -> float:
    values = np.asarray(value)
    return float(values[index] if values.ndim else values)


def _refuse_negative(record: StepCosts | EngineRules, file: str) -> None:
    may_be_zero = isinstance(record, StepCosts)
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, bool):
            continue
        values = np.asarray(value, dtype=float)
        bad = ~np.isfinite(values) | (values < 0)
        if field.name == "step_s" or not may_be_zero:
            bad |= values == 0
        if np.any(bad):
            odd = float(values[bad].flat[0]) if values.ndim else float(values)
            wanted = "above zero" if field.name == "step_s" or not may_be_zero else "zero or more"
            raise PlannerError(file, field.name, odd, f"must be finite and {wanted}", f"correct {field.name}")
