"""The traffic and its promises, as the search reckons with them: rates, bursts, lengths and goals of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from planner.arrivals import ClosedLoop, Gamma, OnOff, Poisson, Steps, Weibull
from planner.arrivals import Constant as Metronome
from planner.length_views import cached_tokens, request_lengths
from planner.queueing import Goal, Lengths
from planner.simulate import Requests
from planner.slo import Metric, Slo, SloClass
from planner.traces import Recording
from planner.types import PlannerError
from planner.workload import Sample, Stream, Workload, traffic_under

SAMPLE = 4_000
SAMPLE_SEED = 0
# A spell shorter than this is a burst that queues absorb; a longer one is a rate that must be held.
BURST_S = 5.0
# Traces: rates are counted in windows; the plan holds all but the busiest of them.
WINDOW_S, BUSY_QUANTILE = 60.0, 0.95
MOST_SCV = 50.0
LONGEST_PATTERN = 5_000  # requests; a simulation should see a pattern of rates at least twice


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a class is promised, in seconds. `limits` must all be kept by a share `attainment` of its requests."""

    limits: Mapping[Metric, float]
    attainment: float
    goals: tuple[Goal, ...]  # percentiles, each for itself
    means: Mapping[Metric, float]

    @classmethod
    def of(cls, promised: SloClass) -> Promise:
        limited = any(latency.limit is not None for latency in promised.latencies.values())
        joint = limited or promised.attainment is not None
        return cls(
            limits=promised.request_limits_s if joint else {},
            attainment=promised.required_attainment,
            goals=tuple(
                Goal(metric=target.metric, share=target.percentile / 100, limit_s=target.limit_s)
                for target in promised.targets
                if target.percentile is not None and not (joint and _is_limit(promised, target.metric, target.limit_s))
            ),
            means={target.metric: target.limit_s for target in promised.targets if target.percentile is None},
        )

    def tightest_s(self, metric: Metric) -> float | None:
        """The smallest limit of the metric, whatever the share; None without any."""
        found = [goal.limit_s for goal in self.goals if goal.metric == metric]
        found += [limits[metric] for limits in (self.limits, self.means) if metric in limits]
        return min(found, default=None)


def _is_limit(promised: SloClass, metric: Metric, limit_s: float) -> bool:
    latency = promised.latencies[metric]
    return latency.limit is not None and latency.limit / 1e3 == limit_s


@dataclass(frozen=True, kw_only=True)
class ClassTraffic:
    """One stream. `busy_rate_rps` is the rate of its busy stretches; `arrival_scv` the burstiness within them."""

    name: str
    promise: Promise
    rate_rps: float
    busy_rate_rps: float
    arrival_scv: float
    lengths: Lengths


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """All streams. `lengths` are of them together, each by its share of the requests."""

    slo: Slo
    workload: Workload
    classes: tuple[ClassTraffic, ...]
    lengths: Lengths

    @classmethod
    def under(cls, slo: Slo, workload: Workload) -> Traffic:
        """Raises PlannerError where the two documents contradict, or a closed loop has no rate to plan for."""
        workload = _opened(slo, traffic_under(slo, workload))
        rates = {name: workload.mean_rate_rps(name) for name in workload.streams}
        total = sum(rates.values())
        samples = {
            name: workload.sample_stream(name, SAMPLE_SEED, max(50, round(SAMPLE * rate / total)))
            for name, rate in rates.items()
        }
        classes = [
            _class_traffic(slo, name, stream, samples[name], rates[name], workload.recordings.get(name))
            for name, stream in workload.streams.items()
        ]
        parts = [one.lengths for one in classes]
        merged = Lengths(
            prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
            output_tokens=np.concatenate([part.output_tokens for part in parts]),
            cached_tokens=np.concatenate([part.cached_tokens for part in parts]),
        )
        return cls(slo=slo, workload=workload, classes=tuple(classes), lengths=merged)

    @property
    def rate_rps(self) -> float:
        return sum(one.rate_rps for one in self.classes)

    @property
    def busy_rate_rps(self) -> float:
        return sum(one.busy_rate_rps for one in self.classes)

    @property
    def arrival_scv(self) -> float:
        """Of the streams together: that of independent streams, by their rates."""
        return sum(one.arrival_scv * one.busy_rate_rps for one in self.classes) / self.busy_rate_rps

    @cached_property
    def longest_tokens(self) -> int:
        """The longest request of the sample: prompt and answer."""
        return int((self.lengths.prompt_tokens + self.lengths.output_tokens).max())

    def scaled(self, factor: float) -> Traffic:
        """The same mix and pattern at `factor` times the rate."""
        workload = self.workload
        for one in self.classes:
            workload = workload.at_rate(one.name, one.rate_rps * factor)
        classes = tuple(
            replace(one, rate_rps=one.rate_rps * factor, busy_rate_rps=one.busy_rate_rps * factor)
            for one in self.classes
        )
        return replace(self, workload=workload, classes=classes)

    def requests(self, count: int, *, seed: int, block_size_tokens: int = 16) -> tuple[Requests, npt.NDArray[np.int64]]:
        """`count` requests as the workload sends them, and the class of each (an index into `classes`)."""
        sample = _in_busy_stretches(self.workload).sample(seed, count)
        assert sample.arrival_s is not None, "closed loops were opened"
        requests = Requests(
            prompt_tokens=sample.isl,
            output_tokens=sample.osl,
            cached_tokens=cached_tokens(sample, block_size_tokens=block_size_tokens),
            arrival_s=sample.arrival_s,
        )
        return requests, sample.stream


def _class_traffic(
    slo: Slo, name: str, stream: Stream, sample: Sample, rate_rps: float, recording: Recording | None
) -> ClassTraffic:
    busy_rps, scv = _recorded_bursts(recording, rate_rps) if recording else _declared_bursts(stream, rate_rps)
    return ClassTraffic(
        name=name,
        promise=Promise.of(slo.of(name)),
        rate_rps=rate_rps,
        busy_rate_rps=busy_rps,
        arrival_scv=scv,
        lengths=request_lengths(sample),
    )


def _declared_bursts(stream: Stream, rate_rps: float) -> tuple[float, float]:
    """(busy rate, burstiness within it) of a law."""
    law = stream.arrivals
    if isinstance(law, Metronome):
        return rate_rps, 0.0
    if isinstance(law, Gamma):
        scv = law.cv**2 if law.cv is not None else 1 / (law.burstiness or 1.0)
        return rate_rps, min(MOST_SCV, scv)
    if isinstance(law, Weibull):
        return rate_rps, min(MOST_SCV, law.cv**2)
    if isinstance(law, Steps):
        return max(step.rate_rps for step in law.steps), 1.0
    if isinstance(law, OnOff):
        if law.on_s >= BURST_S:
            return law.on_rps, 1.0
        # Index of dispersion of a process that switches between two Poisson rates.
        relaxation_s = law.on_s * law.off_s / (law.on_s + law.off_s)
        on = law.on_s / (law.on_s + law.off_s)
        swing = 2 * (law.on_rps - law.off_rps) ** 2 * on * (1 - on) * relaxation_s / rate_rps
        return rate_rps, min(MOST_SCV, 1 + swing)
    return rate_rps, 1.0


def _recorded_bursts(recording: Recording, rate_rps: float) -> tuple[float, float]:
    """(busy rate, burstiness within it) of a trace that is replayed at `rate_rps`."""
    window_s = min(WINDOW_S, recording.span_s / 4)
    counts = np.bincount((recording.arrival_s // window_s).astype(int))[: ceil(recording.span_s / window_s)]
    busy = max(1.0, float(np.quantile(counts, BUSY_QUANTILE)) / window_s / recording.mean_rate_rps)
    short_s = min(BURST_S, window_s / 4)
    fine = np.bincount((recording.arrival_s // short_s).astype(int))
    local = np.repeat(counts, ceil(window_s / short_s))[: len(fine)] * short_s / window_s
    excess = float(((fine[: len(local)] - local) ** 2).mean() / max(local.mean(), 1e-9))
    return rate_rps * busy, float(np.clip(excess, 1.0, MOST_SCV))


def _opened(slo: Slo, workload: Workload) -> Workload:
    """Closed loops as open streams of the rate that callers reach when each answer takes as long as promised.

    Faster answers bring more requests, until they take that long; so who holds the SLO at this rate holds it.
    """
    streams = dict(workload.streams)
    for name, stream in workload.streams.items():
        law = stream.arrivals
        if isinstance(law, ClosedLoop):
            sample = workload.sample_stream(name, SAMPLE_SEED, SAMPLE)
            cycle_s = law.think_s + _promised_s(slo.of(name), name, float(sample.osl.mean()))
            streams[name] = _poisson(stream, law.concurrency / cycle_s)
    return Workload(streams=streams, recordings=workload.recordings, file=workload.file)


def _in_busy_stretches(workload: Workload) -> Workload:
    """Rates that change too slowly for a simulation to see the whole pattern: their busiest stretch, all the time."""
    streams = dict(workload.streams)
    for name, stream in workload.streams.items():
        law = stream.arrivals
        if isinstance(law, Steps) and sum(step.for_s * step.rate_rps for step in law.steps) > LONGEST_PATTERN:
            streams[name] = _poisson(stream, max(step.rate_rps for step in law.steps))
    return Workload(streams=streams, recordings=workload.recordings, file=workload.file)


def _poisson(stream: Stream, rate_rps: float) -> Stream:
    return stream.model_copy(update={"arrivals": Poisson(kind="poisson", rate_rps=rate_rps)})


def _promised_s(promised: SloClass, name: str, mean_osl: float) -> float:
    """How long a mean answer may take."""
    promise = Promise.of(promised)
    ttft_s, tpot_s, e2e_s = (promise.tightest_s(metric) for metric in ("ttft", "tpot", "e2e"))
    if tpot_s is not None:
        return (ttft_s or 0.0) + max(0.0, mean_osl - 1) * tpot_s
    if e2e_s is not None:
        return e2e_s
    problem = "a closed loop's rate follows from how long answers take, and no TPOT or E2E is promised"
    raise PlannerError("slo.yaml", f"classes.{name}.tpot_ms", None, problem, "add tpot_ms or e2e_ms, or give a rate")
