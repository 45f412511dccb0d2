"""How long one engine step takes, operator by operator, from what it asks (`Work`) and what the device gives (`Chip`).

Each group of operators takes the longer of its arithmetic and its memory traffic; groups, collectives and overheads
follow one another, so they add up. Prefill tokens and decoding sequences of one step share the matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.perf.arrays import Array, Table, soft_max
from planner.perf.chip import Chip
from planner.perf.coefficients import Coefficients
from planner.perf.work import Work

ACTIVATION_BYTES = 2.0  # activations cross links in 16 bits
OVERLAP = 2.5  # sharpness of the roofline's corner
# Experts are not equally liked: the mean of each fifth, from the rarest to the most used, of a log-normal spread.
POPULARITY = (0.29, 0.52, 0.79, 1.2, 2.2)
MOST_LIKED = 0.999
UNEVEN = 0.95  # their standard deviation over their mean
PCIE_SHARE = 0.6  # of the link coefficient: PCIe collectives stage through the host
PCIE_REDUCE = 3.0  # and start later
LONGEST = 1e9  # tokens; a window that never binds
PEER_S = 10e-6  # one hop to the next pipeline stage


@dataclass(frozen=True, kw_only=True)
class Batch(Table):
    """One step, per data-parallel rank: `decoding` sequences of `context` tokens, and a chunk of `prefill` tokens.

    `pairs` counts (prefill token, token it attends to); `prompts` how many prompts end in the step.
    """

    decoding: Array
    context: Array
    prefill: Array
    pairs: Array
    prompts: Array
    others: Array  # tokens that the other ranks bring to experts they share with this one, per rank


@dataclass(frozen=True, kw_only=True)
class Step(Table):
    """Seconds of one step by cause."""

    weights_s: Array  # matrix products and the weights they read, head included
    experts_s: Array
    attention_s: Array
    state_s: Array
    links_s: Array
    overhead_s: Array

    @property
    def total_s(self) -> Array:
        return np.asarray(
            self.weights_s + self.experts_s + self.attention_s + self.state_s + self.links_s + self.overhead_s
        )


def step(work: Work, chip: Chip, co: Coefficients, batch: Batch) -> Step:
    """The step of each configuration; with prefill it lasts at least as long as launching its kernels takes."""
    tokens = batch.decoding + batch.prefill
    weights_s = _dense_s(work, chip, co, tokens, batch.decoding + batch.prompts)
    experts_s = _experts_s(work, chip, co, batch)
    attention_s = _decode_attention_s(work, chip, co, batch) + _prefill_attention_s(work, chip, co, batch)
    state_s = batch.decoding * 2 * work.state_bytes / (chip.kv * co.kv) + tokens * work.state_flops / chip.attention
    links_s = _links_s(work, chip, co, tokens)
    device_s = weights_s + experts_s + attention_s + state_s + links_s
    overhead_s = _overhead_s(work, co, batch)
    launch_s = np.where(batch.prefill > 0, co.launch_layer_s * work.layers, 0.0)
    return Step(
        weights_s=weights_s,
        experts_s=experts_s,
        attention_s=attention_s,
        state_s=state_s,
        links_s=links_s,
        overhead_s=overhead_s + np.maximum(0.0, launch_s - device_s - overhead_s),
    )


def _dense_s(work: Work, chip: Chip, co: Coefficients, tokens: Array, sampled: Array) -> Array:
    compute_16 = work.dense_flops_16 / (chip.products_16 * co.products)
    compute_packed = work.dense_flops_packed / (chip.products_packed * co.products)
    plain_bytes = work.dense_bytes - work.packed_bytes
    memory_s = (plain_bytes / chip.memory + work.packed_bytes / chip.memory_packed) / co.memory
    head_s = soft_max(
        work.head_bytes / (chip.memory * co.memory),
        sampled * work.head_flops / (chip.products_16 * co.products),
        OVERLAP,
    )
    return soft_max(memory_s, tokens * (compute_16 + compute_packed), OVERLAP) + head_s


def _experts_s(work: Work, chip: Chip, co: Coefficients, batch: Batch) -> Array:
    """Distinct experts are read once; a token's copies go to all the devices that share the experts.

    Whoever holds the best liked experts is the last to finish: the largest of `ep` sums of many lognormal numbers.
    """
    tokens = batch.decoding + batch.prefill
    everyone = tokens + batch.others * (work.dp - 1)
    here = work.experts / work.ep
    chance = np.divide(work.experts_per_token, work.experts, out=np.zeros_like(tokens), where=work.experts > 0)
    untouched = [np.exp(everyone * np.log1p(-np.minimum(chance * popularity, MOST_LIKED))) for popularity in POPULARITY]
    touched = here * (1 - sum(untouched) / len(POPULARITY))
    memory_s = touched * work.expert_bytes / (chip.memory_experts * co.memory * co.experts)
    rate = np.where(work.experts_packed > 0, chip.products_packed, chip.products_16) * co.products * co.expert_products
    compute_s = everyone * work.experts_per_token / work.ep * work.expert_flops / rate
    uneven = 1 + UNEVEN * np.sqrt(2 * np.log(work.ep) / np.maximum(1.0, here))
    return soft_max(memory_s, compute_s, OVERLAP) * uneven


def _decode_attention_s(work: Work, chip: Chip, co: Coefficients, batch: Batch) -> Array:
    seen = np.minimum(batch.context, work.window)
    read_bytes = batch.context * work.kv_bytes_full + seen * work.kv_bytes_window
    memory_s = read_bytes / (chip.kv * co.kv)
    compute_s = batch.context * work.context_flops / (chip.attention * co.attention)
    return np.asarray(batch.decoding * soft_max(memory_s, compute_s, OVERLAP))


def _prefill_attention_s(work: Work, chip: Chip, co: Coefficients, batch: Batch) -> Array:
    near = np.minimum(batch.pairs, batch.prefill * np.minimum(work.window, LONGEST))
    flops = batch.pairs * work.pair_flops_full + near * work.pair_flops_window
    return np.asarray(flops / (chip.attention * co.attention))


def _links_s(work: Work, chip: Chip, co: Coefficients, tokens: Array) -> Array:
    """Two all-reduces per layer over the tensor-parallel group; where ranks share experts, their tokens travel too."""
    group_bytes = tokens * work.hidden_size * ACTIVATION_BYTES
    within = np.minimum(work.tp, chip.node_devices)
    rate = np.where(work.tp > chip.node_devices, np.minimum(chip.link, chip.network), chip.link)
    rate = rate * co.link * np.where(chip.fabric > 0, 1.0, PCIE_SHARE / np.maximum(1.0, within / 2))
    start_s = co.reduce_s * np.where(chip.fabric > 0, 1.0, PCIE_REDUCE) * (1 + np.log2(np.maximum(work.tp, 1)) / 8)
    shared = 2 * (work.tp - 1) / np.maximum(work.tp, 1)
    reduce_s = np.where(work.tp > 1, 2 * work.layers * (start_s + shared * group_bytes / rate), 0.0)
    apart = (work.dp - 1) / np.maximum(work.dp, 1)
    gather_s = 2 * work.moe_layers * (co.reduce_s + apart * group_bytes * work.dp / (chip.link * co.link))
    return np.asarray(reduce_s + np.where(work.dp > 1, gather_s, 0.0) + (work.pp - 1) * PEER_S)


def _overhead_s(work: Work, co: Coefficients, batch: Batch) -> Array:
    layers_s = work.layers * (co.layer_s + co.packed_layer_s * work.packed) + work.moe_layers * co.moe_layer_s
    return np.asarray(co.step_s + layers_s + batch.decoding * co.sequence_s)
