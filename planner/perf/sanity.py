"""Is a measured point possible? What a device's data sheet forbids is an artefact, and no fit should follow it."""

from __future__ import annotations

import numpy as np

from planner.perf.arrays import Array
from planner.perf.calibrate import Points
from planner.perf.chip import MEASURED_REACH, TYPICAL_REACH, product_unit
from planner.perf.serving import context_tokens

# Prefill at this share of the sheet's arithmetic and decode at this share of its bandwidth have not been seen.
ARITHMETIC_LIMIT, BANDWIDTH_LIMIT = 0.75, 0.90


def demanded_share(points: Points) -> Array:
    """Share of its time that a device would need to do what a closed-loop point claims, at the limits above.

    Above 1 the point cannot be as described: prompts shared a cached prefix, or fewer requests ran than said.
    """
    prepared = points.prepared
    work, load = prepared.work, prepared.load
    devices = [question.device for question in prepared.questions]
    reach = [MEASURED_REACH.get(device.whole, TYPICAL_REACH) for device in devices]
    units = [
        product_unit(device, question.stored, share)[0]
        for device, question, share in zip(devices, prepared.questions, reach, strict=True)
    ]
    peak_16 = np.array([device.peak_flops("bf16") for device in devices])
    peak = np.array([device.peak_flops(unit) for device, unit in zip(devices, units, strict=True)])
    bandwidth = np.array([device.memory_bytes_per_s for device in devices])
    answer_s = points.tpot_s * np.maximum(1.0, load.osl - 1)
    rate_rps = load.concurrency / (points.ttft_s + answer_s) / work.dp
    expert_flops = work.experts_per_token * work.expert_flops * work.dp / work.ep
    prompt_s = load.isl * (work.dense_flops_16 / peak_16 + (work.dense_flops_packed + expert_flops) / peak)
    prompt_s = prompt_s + load.isl**2 / 2 * work.pair_flops_full / peak_16
    cache_bytes = rate_rps * answer_s * context_tokens(load) * work.kv_bytes_full
    step_s = (work.dense_bytes + work.head_bytes + cache_bytes) / bandwidth
    return np.asarray(rate_rps * prompt_s / ARITHMETIC_LIMIT + step_s / points.tpot_s / BANDWIDTH_LIMIT)
