"""The performance model corrected by a profile: shipped beliefs, moved as far as a deployment's own points ask for.

The points of one deployment are six to twelve, so the shipped calibration is shrunk towards them knob by knob
(`planner.perf.calibrate`), and the error bar comes of predicting each point from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.devices import Device, Devices, Figure
from planner.engine import Engine
from planner.files import read_devices
from planner.library import shape_of_model
from planner.memory import CPU_BLOCK_SIZE_TOKENS
from planner.models import ModelShape
from planner.perf.calibrate import Points, fit_deployments
from planner.perf.calibration import Calibration, Sigma
from planner.perf.chip import MEASURED_REACH, TYPICAL_REACH
from planner.perf.estimate import Estimate, estimates
from planner.perf.prepared import prepare
from planner.perf.question import Question
from planner.perf.rows import engine_family, kv_dtype
from planner.perf.shipped import shipped_calibration
from planner.perf.work import Layout, Work, storage, work_of
from planner.profile import Profile, ProfilePoint
from planner.types import GIB, PlannerError

# What nobody timed an operator on may be this much further (as a power) from what we believe than a GPU that we know.
WIDER = 5.0
# As many points as the shipped error bar is worth, when a profile's own errors are weighed against it.
SHIPPED_POINTS = 6
# At least this share of a measured time is taken for what it stands for, whatever overheads we believe in.
LEAST_SHARE = 0.3
STAND_IN = "derived from measured points of a profile"


def calibrated_on(profile: Profile, *, start: Calibration | None = None, devices: Devices | None = None) -> Calibration:
    """`start` (the shipped calibration) with this deployment corrected, and an error bar of its own.

    Estimates for the same model, device, format and engine then stand on the rung "measured here". Raises
    PlannerError for a profile whose model or device the planner cannot reckon with.
    """
    before = start or shipped_calibration()
    points = points_of(profile, devices)
    question = points.prepared.questions[0]
    width = 1.0 if question.device.whole in MEASURED_REACH else WIDER
    after = fit_deployments(points, before, width=width)
    own = _left_out(points, before, width, after.sigmas["measured here"])
    return replace(after, own_sigmas={**after.own_sigmas, points.keys[0]: own})


def estimates_at(
    profile: Profile, calibration: Calibration | None = None, *, devices: Devices | None = None
) -> list[tuple[ProfilePoint, Estimate]]:
    """Each point of the profile beside what the model says there; without a calibration, the shipped one's word.

    The gap between the two is the gap between measuring from above and reckoning from below: where it is beyond the
    error bar, a figure of the device is wrong, or the deployment does not run as the profile says.
    """
    told = estimates(points_of(profile, devices).prepared, calibration or shipped_calibration())
    return list(zip(profile.points, told, strict=True))


def points_of(profile: Profile, devices: Devices | None = None) -> Points:
    """The profile's points as the calibration takes them. Raises PlannerError."""
    prepared = prepare(questions_of(profile, device_of(profile, devices)))
    ttft_ms = [point.ttft_ms.mean for point in profile.points]
    tpot_ms = [point.tpot_ms.mean if point.tpot_ms else np.nan for point in profile.points]
    return Points(prepared, np.array(ttft_ms) / 1e3, np.array(tpot_ms) / 1e3)


def questions_of(profile: Profile, device: Device) -> list[Question]:
    """One question per point, in order. Raises PlannerError."""
    shape = shape_of_model(profile.model)
    stored = storage(shape, profile.quant)
    kv = profile.kv_cache_dtype or kv_dtype(stored, device.multiplies(stored.compute_dtype))
    return [
        Question(
            shape=shape,
            device=device,
            layout=_layout(profile),
            stored=stored,
            kv_dtype=kv,
            isl=point.isl,
            osl=point.osl,
            kind="request_rate" if point.concurrency is None else "concurrency",
            load=point.request_rate or point.concurrency or 0.0,
            engine=engine_family(profile.engine),
            replicas=profile.replicas,
            eager=profile.eager and device.kind != "cpu",
            prompts_per_client=max(1.0, point.requests / (point.concurrency or point.requests)),
            spread=point.spread,
            budget_tokens=profile.max_num_batched_tokens,
            max_sequences=profile.max_num_seqs,
            kv_cache_bytes=_cache_bytes(profile, shape, kv),
        )
        for point in profile.points
    ]


def device_of(profile: Profile, devices: Devices | None = None) -> Device:
    """The catalogue's device of this name; for a new name, one whose speeds are what the points imply.

    Its memory is what the profile says, else what the engine is known to use of it. Raises PlannerError if the points
    cannot stand in for a data sheet: neither `memory_gib` nor `kv_blocks` is given.
    """
    known = devices or read_devices()
    try:
        return known.device(profile.system)
    except PlannerError as error:
        if ":" in profile.system:
            raise error
    shape = shape_of_model(profile.model)
    work = work_of(shape, _layout(profile), storage(shape, profile.quant))
    return Device(
        name=profile.system,
        label=profile.system,
        vendor="unnamed",
        kind=profile.kind,
        lacks=("fp8_tflops", "int8_tflops", "fp4_tflops", "scale_up_gb_s"),
        bf16_tflops=_figure(_flops(profile, work) / 1e12),
        memory_tb_s=_figure(_bytes_per_s(profile, work) / 1e12),
        memory_gib=_memory(profile, shape, work),
        devices_per_node=_figure(float(profile.tp * profile.pp * profile.dp)),
        file="profile",
    )


def _layout(profile: Profile) -> Layout:
    return Layout(tp=profile.tp, pp=profile.pp, dp=profile.dp, ep=profile.ep)


def _left_out(points: Points, start: Calibration, width: float, shipped: Sigma) -> Sigma:
    """Errors of each point as the others predict it, weighed with what the shipped calibration found elsewhere."""
    count = len(points.keys)
    errors: list[tuple[float, float]] = []
    for row in range(count) if count > 1 else ():
        others = fit_deployments(points.take(np.delete(np.arange(count), row)), start, width=width)
        one = points.take(np.array([row]))
        served = one.prepared.served(others.coefficients(one.prepared.questions))
        errors.append((float(served.tpot_s[0] / one.tpot_s[0] - 1), float(served.ttft_s[0] / one.ttft_s[0] - 1)))
    return Sigma(
        tpot=_weighed(shipped.tpot, [tpot for tpot, _ in errors]),
        ttft=_weighed(shipped.ttft, [ttft for _, ttft in errors]),
    )


def _weighed(shipped: float, errors: Sequence[float]) -> float:
    seen = [error for error in errors if np.isfinite(error)]
    total = SHIPPED_POINTS * shipped**2 + sum(min(abs(error), 1.0) ** 2 for error in seen)
    return round(float(np.sqrt(total / (SHIPPED_POINTS + len(seen)))), 4)


def _cache_bytes(profile: Profile, shape: ModelShape, kv: str) -> int | None:
    """Bytes on the fullest device of the blocks that the profile counts."""
    if profile.kv_blocks is None:
        return None
    default = CPU_BLOCK_SIZE_TOKENS if profile.kind == "cpu" else Engine.block_size_tokens
    block_size_tokens = profile.block_size_tokens or default
    layout = Engine(tp=profile.tp, pp=profile.pp, kv_dtype=kv, block_size_tokens=block_size_tokens).layout(shape)
    return profile.kv_blocks * max(layout.block_bytes(stage=stage) for stage in range(profile.pp))


def _quietest(profile: Profile) -> list[ProfilePoint]:
    """The points of the least load, shortest prompts first: there times are least mixed."""
    loads = [point.concurrency or np.inf for point in profile.points]
    return sorted(
        (point for point, load in zip(profile.points, loads, strict=True) if load == min(loads)),
        key=lambda point: point.isl,
    )


def _bytes_per_s(profile: Profile, work: Work) -> float:
    """Of the data sheet that would explain a lone request's token times: each reads all dense weights."""
    point = _quietest(profile)[0]
    token_s = (point.tpot_ms or point.ttft_ms).mean / 1e3
    base = shipped_calibration().base
    overhead_s = base["step_s"] + float(work.layers[0]) * base["layer_s"]
    read_s = max(token_s - overhead_s, LEAST_SHARE * token_s)
    touched = float(work.experts_per_token[0] * work.expert_bytes[0])
    read_bytes = float(work.dense_bytes[0] + work.head_bytes[0]) + touched
    return read_bytes / read_s / TYPICAL_REACH.memory


def _flops(profile: Profile, work: Work) -> float:
    """Of the data sheet that would explain the first token of a lone long prompt."""
    point = _quietest(profile)[-1]
    wait_s = point.ttft_ms.mean / 1e3
    prefill_s = max(wait_s - shipped_calibration().base["request_s"], LEAST_SHARE * wait_s)
    experts = float(work.experts_per_token[0] * work.expert_flops[0])
    token_flops = float(work.dense_flops_16[0] + work.dense_flops_packed[0]) + experts
    return point.isl * token_flops / prefill_s / TYPICAL_REACH.products_16


def _memory(profile: Profile, shape: ModelShape, work: Work) -> Figure | None:
    if profile.memory_gib is not None:
        return Figure(value=profile.memory_gib, source="stated by the profile", confidence="stated")
    held = _cache_bytes(profile, shape, profile.kv_cache_dtype or "auto")
    if held is None:
        problem, remedy = "the device is new, and its memory is not said", "add memory_gib or kv_blocks to the profile"
        raise PlannerError("profile", "memory_gib", None, problem, remedy)
    # At least what the engine used, by its own share of the device.
    return _figure((held + float(work.weight_bytes[0])) / Engine.gpu_memory_utilization / GIB)


def _figure(value: float) -> Figure:
    return Figure(value=value, source=STAND_IN, confidence="derived")
