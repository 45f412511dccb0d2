"""The performance model as the straight lines that queueing needs, for thousands of engines at once.

The roofline bends; a line must not promise more than it. So each line goes through the step at the batch that
`max_num_seqs` allows, with the smallest slope that keeps it above the steps of smaller batches. It depends on neither
promise, rate nor memory: that is why a laxer promise or more memory can never make a configuration look worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.perf.arrays import Array
from planner.perf.chip import Chip
from planner.perf.coefficients import Coefficients
from planner.perf.pools import NETWORK_SHARE, TRANSFER_S
from planner.perf.roofline import Batch, step
from planner.perf.serving import APART, pipeline_share
from planner.perf.work import Work, work_of
from planner.queueing import Lengths, StepCosts
from planner.search.forms import Forms
from planner.search.question import PlanQuestion

Index = npt.NDArray[np.intp]

SMALLER_BATCHES = (0.0, 0.25, 0.5)  # of max_num_seqs; 0 stands for one sequence
LONGER_CONTEXT = 1.5
LEAST_CHUNK_TOKENS = 64.0
LEAST_STEP_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The pairs of `Forms` as tables: one row per pair."""

    work: Work
    chip: Chip
    co: Coefficients

    @classmethod
    def of(cls, question: PlanQuestion, forms: Forms) -> Machines:
        works = Work.stack(
            [work_of(question.shape, form.layout, form.stored, kv_dtype=form.kv_dtype) for form in forms.forms]
        )
        base = question.calibration.coefficients([base.question for base in forms.bases])
        return cls(
            work=works.take(np.array([pair.form for pair in forms.pairs], np.intp)),
            chip=Chip.stack(forms.chips).take(np.array([pair.chip for pair in forms.pairs], np.intp)),
            co=base.take(np.array([pair.base for pair in forms.pairs], np.intp)),
        )

    def take(self, rows: Index) -> Machines:
        return Machines(work=self.work.take(rows), chip=self.chip.take(rows), co=self.co.take(rows))

    def step_s(self, batch: Batch) -> Array:
        return step(self.work, self.chip, self.co, batch).total_s

    @property
    def held_up(self) -> Array:
        """How many times over a prompt delays one engine: ranks step together, pipeline stages take turns."""
        return np.asarray((1 + (self.work.dp - 1) * APART) * pipeline_share(self.work.pp))

    def overhead_s(self, lengths: Lengths) -> Array:
        """Once per request: front end and network."""
        return np.asarray(self.co.request_s + self.co.prompt_token_s * float(lengths.prompt_tokens.mean()))

    def transfer_s(self) -> tuple[Array, Array]:
        """(seconds of each transfer of KV, seconds per prompt token) to an engine of the same form."""
        network = np.where(np.isfinite(self.chip.network), self.chip.network, self.chip.link) * NETWORK_SHARE
        return np.full_like(network, TRANSFER_S), np.asarray(self.work.kv_bytes_held * self.work.pp / network)


def decode_costs(machines: Machines, seqs: Array, lengths: Lengths) -> StepCosts:
    """Lines for steps without prompts, one row per machine; `seqs` is `max_num_seqs` of each."""
    context = np.full_like(seqs, lengths.mean_context_tokens)
    full_s = machines.step_s(_decoding(machines, seqs, context))
    slopes = []
    for share in SMALLER_BATCHES:
        fewer = np.maximum(1.0, seqs * share)
        fewer_s = machines.step_s(_decoding(machines, fewer, context))
        apart = np.maximum(seqs - fewer, 1e-9)
        slopes.append(np.where(seqs > fewer, (full_s - fewer_s) / apart, np.inf))
    slope_s = np.maximum(0.0, np.minimum.reduce(slopes))
    slope_s = np.where(np.isfinite(slope_s), slope_s, 0.0)
    longer_s = machines.step_s(_decoding(machines, seqs, context * LONGER_CONTEXT))
    kv_token_s = np.minimum((longer_s - full_s) / ((LONGER_CONTEXT - 1) * context * seqs), slope_s / context)
    return StepCosts(
        step_s=np.maximum(LEAST_STEP_S, full_s - slope_s * seqs),
        sequence_s=np.maximum(0.0, slope_s - kv_token_s * context),
        kv_token_s=np.maximum(0.0, kv_token_s),
    )


def mixed_costs(machines: Machines, decode: StepCosts, seqs: Array, budgets: Array, lengths: Lengths) -> StepCosts:
    """`decode` with what prompts add to its steps: each prompt, or a budget full of it, in a step of a full batch."""
    prompts = lengths.prompts
    context = np.full_like(seqs, lengths.mean_context_tokens)
    chunk = np.minimum(prompts.mean_tokens, np.maximum(LEAST_CHUNK_TOKENS, budgets - seqs))
    plain_s = machines.step_s(_decoding(machines, seqs, context))
    token_s, square_s = _prompt_lines(machines, seqs, context, chunk, plain_s, lengths)
    shared = machines.held_up
    work_s = token_s * prompts.mean_tokens + square_s * prompts.mean_square
    return StepCosts(
        step_s=decode.step_s,
        sequence_s=decode.sequence_s,
        kv_token_s=decode.kv_token_s,
        prefill_token_s=token_s * shared,
        prefill_square_s=square_s * shared,
        # Through a pipeline the prompt itself takes all stages, though it delays others by one.
        overhead_s=machines.overhead_s(lengths) + work_s * (1 - 1 / machines.work.pp),
    )


def prefill_costs(machines: Machines, budgets: Array, lengths: Lengths) -> StepCosts:
    """Lines for engines that only prefill: through the steps of a full budget and of one prompt."""
    prompts = lengths.prompts
    none = np.zeros_like(budgets)
    few = np.minimum(np.maximum(LEAST_CHUNK_TOKENS, prompts.mean_tokens), budgets / 2)
    pairs = prompts.mean_square / 2 / prompts.mean_tokens
    few_s, full_s = (machines.step_s(_chunk(none, none, tokens, none, lengths)) for tokens in (few, budgets))
    token_s = np.maximum(0.0, (full_s - few_s) / (budgets - few))
    seen_s = machines.step_s(_chunk(none, none, budgets, budgets * pairs, lengths)) - full_s
    square_s = np.maximum(0.0, seen_s / (2 * budgets * pairs))
    shared = machines.held_up
    work_s = token_s * prompts.mean_tokens + square_s * prompts.mean_square
    return StepCosts(
        step_s=np.maximum(LEAST_STEP_S, few_s - token_s * few),
        sequence_s=machines.co.sequence_s,
        prefill_token_s=token_s * shared,
        prefill_square_s=square_s * shared,
        overhead_s=machines.overhead_s(lengths) + work_s * (1 - 1 / machines.work.pp),
    )


def _prompt_lines(
    machines: Machines, seqs: Array, context: Array, chunk: Array, plain_s: Array, lengths: Lengths
) -> tuple[Array, Array]:
    """(seconds per prompt token, seconds per square of them) beside a batch of `seqs`."""
    each = np.maximum(1.0, seqs / machines.work.pp)
    pairs = chunk * lengths.prompts.mean_square / 2 / lengths.prompts.mean_tokens
    blind_s, seen_s = (
        machines.step_s(_chunk(each, context, chunk, some, lengths)) for some in (np.zeros_like(chunk), pairs)
    )
    return np.maximum(0.0, (blind_s - plain_s) / chunk), np.maximum(0.0, (seen_s - blind_s) / (2 * pairs))


def _decoding(machines: Machines, sequences: Array, context: Array) -> Batch:
    none = np.zeros_like(sequences)
    each = np.maximum(1.0, sequences / machines.work.pp)  # of one micro-batch; stages work on pp of them at once
    return Batch(decoding=each, context=context, prefill=none, pairs=none, prompts=none, others=each)


def _chunk(decoding: Array, context: Array, tokens: Array, pairs: Array, lengths: Lengths) -> Batch:
    prompts = tokens / lengths.prompts.mean_tokens
    return Batch(
        decoding=decoding, context=context, prefill=tokens, pairs=pairs, prompts=prompts, others=decoding + tokens
    )
