"""A simulated engine fitted to a profile: step costs under which the simulator gives the points that were measured.

Top-down: nothing of a data sheet enters, so it holds for devices that nobody published figures of, and the simulator
can be held against the real engine under loads that the profile never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy

from planner.devices import Devices
from planner.kv_blocks import NULL_BLOCKS
from planner.library import shape_of_model
from planner.perf.profiled import device_of, questions_of
from planner.perf.work import Layout, storage, work_of
from planner.profile import Profile, ProfilePoint
from planner.queueing.costs import EngineRules, Floats, StepCosts
from planner.simulate import MixedFleet, Outcome, Pool, Requests, Spread, draw_arrivals, run_closed, run_open

NAMES = tuple(field.name for field in fields(StepCosts))
# Scatter of a measured mean about a perfect model (natural log).
TPOT_SCATTER, TTFT_SCATTER = 0.05, 0.10
# How far each cost may lie from the first guess (natural log, one sigma): two come from the model's shape alone.
GUESS_SIGMAS = {
    "step_s": 0.7,
    "prefill_token_s": 0.7,
    "sequence_s": 2.0,
    "kv_token_s": 1.0,
    "prefill_square_s": 1.0,
    "overhead_s": 1.5,
}
GUESSED_OVERHEAD_S = 5e-3
GUESSED_SEQUENCE_SHARE = 0.01  # of a step
LEAST_S = 1e-12
# The simulator is a staircase of events: derivatives are taken over steps that are wider than a stair.
DERIVATIVE_STEP = 0.03
MAX_CALLS = 40
OPEN_REQUESTS = 1_000  # simulated per point with random arrivals


def step_costs_of(profile: Profile, *, devices: Devices | None = None) -> StepCosts:
    """The costs of one step of the profiled engine.

    Raises PlannerError as `rules_of` does, and for points that no request of the profile's engine could have given.
    """
    rules, guess = rules_of(profile, devices=devices), _guess(profile)
    sigmas = np.array([GUESS_SIGMAS[name] for name in NAMES])
    trials = [_Trial.of(point, profile) for point in profile.points]

    def residuals(x: Floats) -> Floats:
        fleet = _fleet(profile, _costs(guess, x * sigmas), rules)
        found = [trial.errors(fleet) for trial in trials]
        return np.concatenate([np.nan_to_num(np.array(found).ravel()), x])

    start = np.zeros(len(NAMES))
    solved = scipy.optimize.least_squares(
        residuals, start, diff_step=DERIVATIVE_STEP, x_scale=1.0, loss="soft_l1", max_nfev=MAX_CALLS
    )
    return _costs(guess, solved.x * sigmas)


def rules_of(profile: Profile, *, devices: Devices | None = None) -> EngineRules:
    """The scheduler's rules of the profiled engine: what the profile says, else vLLM's defaults on such a device.

    Raises PlannerError for a model or device that the planner does not know.
    """
    limits = questions_of(profile, device_of(profile, devices))[0].limits()
    block = profile.block_size_tokens or limits.layout.block_tokens
    known = profile.kv_blocks is not None and profile.block_size_tokens is not None
    blocks = profile.kv_blocks - NULL_BLOCKS if known and profile.kv_blocks else limits.blocks
    return EngineRules(
        max_num_batched_tokens=max(limits.budget_tokens, limits.max_sequences),
        max_num_seqs=limits.max_sequences,
        kv_blocks=blocks,
        block_size_tokens=block,
        async_scheduling=profile.async_scheduling,
    )


def simulated(profile: Profile, costs: StepCosts, *, devices: Devices | None = None) -> list[tuple[float, float]]:
    """Mean TTFT and TPOT in seconds, by the simulator, at each point of the profile; NaN where there is no TPOT."""
    fleet = _fleet(profile, costs, rules_of(profile, devices=devices))
    return [_means_s(_Trial.of(point, profile).run(fleet)) for point in profile.points]


@dataclass(frozen=True)
class _Trial:
    """One point, and the requests that it sent."""

    point: ProfilePoint
    requests: Requests

    @classmethod
    def of(cls, point: ProfilePoint, profile: Profile) -> _Trial:
        count = point.requests if point.request_rate is None else max(OPEN_REQUESTS, point.requests)
        longest = point.osl / (1 - point.spread / 2)
        drawn = np.random.default_rng(0).permutation(np.linspace(longest * (1 - point.spread), longest, count))
        requests = Requests(
            prompt_tokens=np.full(count, max(1, round(point.isl))),
            output_tokens=np.maximum(1, np.rint(drawn)).astype(np.int64),
            cached_tokens=np.zeros(count, np.int64),
            arrival_s=np.empty(0),
        )
        if point.request_rate is not None:
            arrivals = draw_arrivals(count, rate_rps=point.request_rate, seed=0)
            requests = replace(requests, arrival_s=arrivals)
        return cls(point, requests)

    def run(self, fleet: MixedFleet) -> Outcome:
        if self.point.concurrency is None:
            return run_open(fleet, self.requests)
        return run_closed(fleet, self.requests, concurrency=max(1, round(self.point.concurrency)))

    def errors(self, fleet: MixedFleet) -> tuple[float, float]:
        """Logarithms of simulated over measured, in scatters: TTFT and TPOT."""
        ttft_s, tpot_s = _means_s(self.run(fleet))
        measured = self.point.tpot_ms.mean / 1e3 if self.point.tpot_ms else float("nan")
        ttft = np.log(ttft_s / (self.point.ttft_ms.mean / 1e3)) / TTFT_SCATTER
        return float(ttft), float(np.log(tpot_s / measured) / TPOT_SCATTER)


def _means_s(outcome: Outcome) -> tuple[float, float]:
    tpot_s = outcome.tpot_s[~np.isnan(outcome.tpot_s)]
    return float(np.mean(outcome.ttft_s)), float(np.mean(tpot_s)) if len(tpot_s) else float("nan")


def _fleet(profile: Profile, costs: StepCosts, rules: EngineRules) -> MixedFleet:
    engines = profile.replicas * profile.dp
    return MixedFleet(pool=Pool(engines=engines, costs=costs, rules=rules, spread=Spread.LEAST_LOADED))


def _costs(guess: StepCosts, log_factors: Sequence[float] | Floats) -> StepCosts:
    return StepCosts(
        **{
            name: float(getattr(guess, name)) * float(np.exp(factor))
            for name, factor in zip(NAMES, log_factors, strict=True)
        }
    )


def _guess(profile: Profile) -> StepCosts:
    """From the quietest points, and from the model's shape what these cannot tell apart."""
    loads = [point.concurrency or np.inf for point in profile.points]
    quiet = [point for point, load in zip(profile.points, loads, strict=True) if load == min(loads)]
    short, long = min(quiet, key=lambda p: p.isl), max(quiet, key=lambda p: p.isl)
    step_s = (short.tpot_ms or short.ttft_ms).mean / 1e3
    work = work_of(
        shape_of_model(profile.model),
        Layout(tp=profile.tp, pp=profile.pp, dp=profile.dp, ep=profile.ep),
        storage(shape_of_model(profile.model), profile.quant),
    )
    token_s = max(long.ttft_ms.mean / 1e3 - step_s, 0.1 * long.ttft_ms.mean / 1e3) / long.isl
    token_flops = float(work.dense_flops_16[0] + work.dense_flops_packed[0])
    token_flops += float(work.experts_per_token[0] * work.expert_flops[0])
    read_bytes = float(work.dense_bytes[0] + work.head_bytes[0] + work.experts_per_token[0] * work.expert_bytes[0])
    return StepCosts(
        step_s=step_s,
        prefill_token_s=token_s,
        sequence_s=GUESSED_SEQUENCE_SHARE * step_s,
        kv_token_s=max(LEAST_S, step_s * float(work.kv_bytes_full[0] + work.kv_bytes_window[0]) / read_bytes),
        prefill_square_s=max(LEAST_S, token_s * float(work.pair_flops_full[0]) / 2 / token_flops),
        overhead_s=GUESSED_OVERHEAD_S,
    )
