"""KV blocks of thousands of engines at once: the arithmetic of `planner.gpu_memory` over arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.contexts import ContextLengths
from planner.engine import Engine
from planner.footprint import Footprint, forward_bytes, sampler_bytes
from planner.kv_blocks import NULL_BLOCKS, KvGroup, KvLayout, in_flight_tokens
from planner.models import ModelShape
from planner.search.forms import Form, Forms
from planner.search.question import PlanQuestion
from planner.split import Split, stage_layers
from planner.types import dtype_bytes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Tensors that are split alike: (of experts, units, copies, stored bytes).
Like = tuple[bool, int, int, int]

# What `max_model_len` is rounded up to, above the longest request of the sample by this factor.
LENGTH_STEP_TOKENS, LENGTH_SPARE = 1024, 1.25


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Arrays of shape (pairs, budgets, seqs).

    `kv_tokens` is what a plain cache would need to hold as many of the workload's contexts as the blocks do, so that
    windows and recurrent states count as what they are worth.
    """

    blocks: Ints
    kv_tokens: Floats
    fits: Bools
    weights_fit: Bools


def planned_length(question: PlanQuestion, longest_tokens: int) -> int:
    """The `max_model_len` to plan with."""
    if question.max_model_len_tokens is not None:
        return question.max_model_len_tokens
    wanted = -(-int(longest_tokens * LENGTH_SPARE) // LENGTH_STEP_TOKENS) * LENGTH_STEP_TOKENS
    return max(longest_tokens, min(wanted, question.shape.max_position_embeddings))


def fit(question: PlanQuestion, forms: Forms, contexts: ContextLengths, *, max_len: int) -> Fit:
    """Blocks of every pair under every budget and max_num_seqs."""
    budgets = np.array(question.space.budgets_tokens)
    seqs = np.array(question.space.max_num_seqs)
    tables: dict[str, WeightTable] = {}
    found: list[tuple[Ints, Floats, Bools, Bools]] = []
    facts: dict[int, _Facts] = {}
    footprint = question.footprint or Footprint()
    at_work = np.array(list(contexts.at_work()))
    for pair in forms.pairs:
        form = forms.forms[pair.form]
        if pair.form not in facts:
            if form.stored.name not in tables:
                tables[form.stored.name] = WeightTable(form.stored_shape(question.shape))
            facts[pair.form] = _facts(question, form, tables[form.stored.name], at_work, footprint, max_len)
        memory_bytes = forms.devices[pair.device].memory_bytes
        found.append(_fit_one(facts[pair.form], memory_bytes, question.gpu_memory_utilization, budgets, seqs))
    blocks, kv_tokens, fits, weights_fit = (np.stack(column) for column in zip(*found, strict=True))
    return Fit(blocks=blocks, kv_tokens=kv_tokens, fits=fits, weights_fit=weights_fit)


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the blocks of one form follow from, whatever the device. Bytes on one device."""

    weights_bytes: tuple[int, ...]  # by stage
    block_bytes: tuple[int, ...]
    forward_bytes: int  # per token of budget
    logit_bytes: int  # per sequence
    hidden_bytes: int  # per token of budget
    fixed_activation_bytes: int | None
    graph_bytes: int
    other_bytes: int
    longest_blocks: Ints  # by budget
    tokens_per_block: float


def _facts(
    question: PlanQuestion,
    form: Form,
    table: WeightTable,
    at_work: Floats,
    footprint: Footprint,
    max_len: int,
) -> _Facts:
    shape, pp = question.shape, form.layout.pp
    engine = form.engine(question, budget_tokens=1, max_num_seqs=1, max_len=max_len)
    layout = engine.layout(shape)
    longest = [
        layout.reserved_blocks(max_len, in_flight_tokens=in_flight_tokens(budget, pp=pp))
        for budget in question.space.budgets_tokens
    ]
    logits = sampler_bytes(shape, engine.with_seqs(2)) - sampler_bytes(shape, engine)
    return _Facts(
        weights_bytes=table.stage_bytes(engine, exact_bytes=question.exact_weight_bytes),
        block_bytes=tuple(layout.block_bytes(stage=stage) for stage in range(pp)),
        forward_bytes=forward_bytes(shape, engine),
        logit_bytes=logits,
        hidden_bytes=sampler_bytes(shape, engine) - logits,
        fixed_activation_bytes=footprint.activation_bytes,
        graph_bytes=footprint.graph_bytes,
        other_bytes=footprint.other(engine),
        longest_blocks=np.array(longest),
        tokens_per_block=_worth(layout, at_work, engine.block_size_tokens),
    )


def _fit_one(
    facts: _Facts, memory_bytes: int, utilization: float, budgets: Ints, seqs: Ints
) -> tuple[Ints, Floats, Bools, Bools]:
    budget, count = budgets[:, None], seqs[None, :]
    if facts.fixed_activation_bytes is not None:
        activation = np.full((len(budgets), len(seqs)), facts.fixed_activation_bytes)
    else:
        activation = np.maximum(budget * facts.forward_bytes, count * facts.logit_bytes + budget * facts.hidden_bytes)
    spare = int(memory_bytes * utilization) - activation - facts.graph_bytes - facts.other_bytes
    blocks = np.full(activation.shape, np.iinfo(np.int64).max)
    weights_fit = np.full(activation.shape, True)
    for weights_bytes, block_bytes in zip(facts.weights_bytes, facts.block_bytes, strict=True):
        weights_fit &= spare > weights_bytes
        if block_bytes:
            blocks = np.minimum(blocks, np.maximum(0, spare - weights_bytes) // block_bytes)
    usable = np.maximum(0, blocks - NULL_BLOCKS)
    fits = weights_fit & (facts.longest_blocks[:, None] <= usable) & (budget >= count)
    return blocks, usable * facts.tokens_per_block, fits, weights_fit


def _worth(layout: KvLayout, at_work: Floats, block_size_tokens: int) -> float:
    """Tokens of a plain cache that one block stands for, over contexts at work: rows of (tokens, weight)."""
    tokens, weights = at_work[:, 0].astype(np.int64), at_work[:, 1]
    held = sum(_held(group, tokens) for group in layout.groups)
    plain = -(-tokens // block_size_tokens) * block_size_tokens
    return float((plain * weights).sum() / (np.asarray(held) * weights).sum())


def _held(group: KvGroup, tokens: Ints) -> Ints:
    """`KvGroup.held_blocks` over an array."""
    if group.states:
        return np.full(len(tokens), group.states)
    whole = -(-tokens // group.block_tokens)
    return whole if group.mixer == "full" else np.minimum(whole, group.held_blocks(1 << 40))


class WeightTable:
    """The weights of one stored model, like tensors counted together: stages and splits without walking all of them."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        plain_bytes = dtype_bytes(shape.dtype)
        self._outside: dict[str, Counter[Like]] = {}
        layers: list[Counter[Like]] = [Counter() for _ in range(shape.num_layers)]
        for tensor in shape.tensors:
            stored = tensor.stored_bytes(shape.quantisation, plain_bytes)
            key = (tensor.part == "experts", tensor.units, tensor.copies, stored)
            if tensor.layer is None:
                self._outside.setdefault(tensor.place, Counter())[key] += 1
            else:
                layers[tensor.layer][key] += 1
        # Most layers are alike: each kind is counted once.
        self._layers = [frozenset(layer.items()) for layer in layers]

    def stage_bytes(self, engine: Engine, *, exact_bytes: int | None = None) -> tuple[int, ...]:
        """As `ModelShape.weight_bytes` for each stage of the engine's split."""
        split = Split(tp=engine.tp, pp=engine.pp, ep=engine.ep)
        counted = tuple(self._stage(split, stage) for stage in range(engine.pp))
        if exact_bytes is None:
            return counted
        if engine.tp == engine.pp == engine.ep == 1:
            return (exact_bytes,)
        whole = self._stage(Split(), 0)
        return tuple(-(-exact_bytes * stage // whole) for stage in counted)

    def _stage(self, split: Split, stage: int) -> int:
        total: Counter[Like] = Counter()
        held = Counter(self._layers[layer] for layer in stage_layers(self._shape.num_layers, stage, split.pp))
        for kind, layers in held.items():
            for key, count in kind:
                total[key] += count * layers
        first, last = stage == 0, stage == split.pp - 1
        for place, wanted in (("first", first), ("last", last), ("both", first or last)):
            if wanted:
                total.update(self._outside.get(place, {}))
        return sum(count * _share(split, key) for key, count in total.items())


def _share(split: Split, key: Like) -> int:
    """`Split.share` of like tensors."""
    experts, units, copies, stored_bytes = key
    if experts and split.ep > 1:
        return -(-stored_bytes * -(-copies // split.ep) // copies)
    return -(-stored_bytes * -(-units // split.tp) // units)
