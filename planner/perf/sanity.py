"""Is a measured point possible? What no operator on the device has ever reached is an artefact; no fit follows it."""

from __future__ import annotations

import numpy as np

from planner.perf.arrays import Array
from planner.perf.calibrate import Points
from planner.perf.serving import context_tokens

# How far whole engines may outdo operators that were timed alone.
MARGIN = 1.1


def demanded_share(points: Points) -> Array:
    """Share of its time that a device would need for what a closed-loop point claims, at the reach of its operators.

    Above 1 the point cannot be as described: prompts shared a cached prefix, or fewer requests ran than said.
    """
    prepared = points.prepared
    work, load = prepared.work, prepared.load
    chip = prepared.chip
    answer_s = points.tpot_s * np.maximum(1.0, load.osl - 1)
    rate_rps = load.concurrency / (points.ttft_s + answer_s) / work.dp
    expert_flops = work.experts_per_token * work.expert_flops * work.dp / work.ep
    packed_flops = work.dense_flops_packed + expert_flops
    prompt_s = load.isl * (work.dense_flops_16 / chip.products_16 + packed_flops / chip.products_packed)
    cache_bytes = rate_rps * answer_s * context_tokens(load) * work.kv_bytes_full
    step_s = (work.dense_bytes + work.head_bytes) / chip.memory + cache_bytes / chip.kv
    return np.asarray((rate_rps * prompt_s + step_s / points.tpot_s) / MARGIN)
