"""The workload document: the traffic to plan for, simulate and send. Planner and load test read the same file.

A stream is the traffic of one SLO class and carries its name. It is described by laws (lengths, arrivals, prefix) or
recorded in a trace file. Sampling is pure: a seed gives the same bytes each time, and a longer sample begins with
the shorter one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from planner.arrivals import Arrivals, ClosedLoop
from planner.documents import Document, nearest, refuse, validated
from planner.lengths import LENGTH_DRAWS, Lengths, Prefix
from planner.rates import SPELLS
from planner.slo import Slo
from planner.traces import Recording, TraceFormat
from planner.types import PlannerError

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

# Two statements of one rate may differ by rounding, not by more.
RATES_AGREE = 0.01


@dataclass(frozen=True)
class Sample:
    """Requests in order of arrival. Arrays of one length; times in seconds from the start, lengths in tokens.

    `arrival_s` is None in a closed loop, where a request is due when the caller's last answer has ended.
    `prefix` numbers the shared beginnings of each stream (-1: none or unknown). `prefix_tokens` says how much of the
    prompt that is; of a recording, how much of the prompt came before. `stream` is an index into `streams`, and
    `recorded` one into that stream's recording (-1: it has none).
    """

    arrival_s: Floats | None
    isl: Tokens
    osl: Tokens
    prefix: Tokens
    prefix_tokens: Tokens
    stream: Tokens
    recorded: Tokens
    streams: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.isl)


class Trace(Document):
    """A recorded trace. `rate_rps` replays it at another mean rate: thinned for less, overlaid for more traffic.

    `bin_s`: the clock of the recorder ticked only so often (Mooncake: 3 s); arrivals are spread over the tick.
    """

    path: str
    format: TraceFormat
    max_gap_s: PositiveFloat = 600.0
    bin_s: NonNegativeFloat = 0.0
    rate_rps: PositiveFloat | None = None
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")] = None


class Stream(Document):
    """The traffic of one SLO class: laws or a trace."""

    lengths: Lengths | None = None
    arrivals: Arrivals | None = None
    prefix: Prefix | None = None
    trace: Trace | None = None

    @model_validator(mode="after")
    def _laws_or_trace(self) -> Self:
        laws = [name for name in ("lengths", "arrivals", "prefix") if getattr(self, name) is not None]
        if self.trace is not None and laws:
            refuse("trace", self.trace.path, f"{laws[0]} is given too, which the trace settles", "keep one of the two")
        if self.trace is None:
            for key, example in (("lengths", "{kind: constant, isl: 1000, osl: 200}"), ("arrivals", "{kind: poisson}")):
                if key not in laws:
                    refuse(key, None, "it is needed where there is no trace", f"add {key}, such as {example}")
        return self


class WorkloadFile(Document):
    """A workload file: the streams, each by the name of its SLO class."""

    streams: Annotated[dict[str, Stream], Field(min_length=1)]


@dataclass(frozen=True)
class Workload:
    """A workload file with its traces read in."""

    streams: Mapping[str, Stream]
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    file: str = "workload.yaml"

    def __post_init__(self) -> None:
        for name, stream in self.streams.items():
            if stream.trace is not None and name not in self.recordings:
                key = f"streams.{name}.trace"
                raise PlannerError(
                    self.file, key, stream.trace.path, "the trace was not read", "read_workload reads it"
                )

    def stream(self, name: str) -> Stream:
        """The stream called `name`. Raises PlannerError with the nearest names."""
        if name not in self.streams:
            key = f"streams.{name}"
            raise PlannerError(self.file, key, None, "no such stream", nearest(name, self.streams))
        return self.streams[name]

    def mean_rate_rps(self, name: str) -> float:
        """Requests per second of one stream. Raises PlannerError for a closed loop."""
        stream = self.stream(name)
        if stream.trace is not None:
            return stream.trace.rate_rps or self.recordings[name].mean_rate_rps
        assert stream.arrivals is not None
        return stream.arrivals.mean_rate_rps

    def at_rate(self, name: str, rate_rps: float) -> Workload:
        """The same pattern of one stream at another mean rate. Raises PlannerError for a closed loop."""
        if not 0 < rate_rps < float("inf"):
            raise PlannerError(self.file, f"streams.{name}", rate_rps, "no rate", "give requests per second above 0")
        stream = self.stream(name)
        if stream.trace is not None:
            changed: dict[str, object] = {"trace": stream.trace.model_copy(update={"rate_rps": rate_rps})}
        else:
            assert stream.arrivals is not None
            changed = {"arrivals": stream.arrivals.at_rate(rate_rps)}
        return replace(self, streams={**self.streams, name: stream.model_copy(update=changed)})

    def sample(self, seed: int, n: int) -> Sample:
        """The first `n` requests over all streams. Raises PlannerError if closed loops are among several streams."""
        parts = [self.sample_stream(name, seed, n) for name in self.streams]
        if len(parts) == 1:
            return parts[0]
        closed = [part.streams[0] for part in parts if part.arrival_s is None]
        if closed:
            key = f"streams.{closed[0]}.arrivals.kind"
            problem = "a closed loop has no times to merge with other streams"
            raise PlannerError(self.file, key, "closed_loop", problem, "sample each stream alone, or give it a rate")
        return _merged(parts, n)

    def sample_stream(self, name: str, seed: int, n: int) -> Sample:
        """The first `n` requests of one stream, which do not depend on the other streams."""
        if n < 0 or seed < 0:
            raise PlannerError("settings", "n" if n < 0 else "seed", min(n, seed), "negative", "use 0 or more")
        stream = self.stream(name)
        recording = self.recordings.get(name)
        if stream.trace is not None and recording is not None:
            return _replay(name, stream.trace, recording, seed, n)
        return _draw(name, stream, seed, n)


def workload_from(
    data: object, *, recordings: Mapping[str, Recording] | None = None, file: str = "workload.yaml"
) -> Workload:
    """The workload in parsed YAML; `recordings` holds the traces by stream. Raises PlannerError."""
    document = validated(WorkloadFile, data, file=file)
    return Workload(streams=document.streams, recordings=recordings or {}, file=file)


def traffic_under(slo: Slo, workload: Workload) -> Workload:
    """The workload at the rates that the SLO promises. Raises PlannerError where the two documents contradict.

    Each stream needs its class, and each class its stream. A rate may stand in either file; in both, it must agree.
    """
    for name in slo.classes:
        workload.stream(name)
    for name, stream in workload.streams.items():
        promised = slo.of(name)
        closed = stream.arrivals if isinstance(stream.arrivals, ClosedLoop) else None
        if promised.concurrency is not None:
            stated = closed.concurrency if closed else None
            if stated != promised.concurrency:
                remedy = f"use arrivals: {{kind: closed_loop, concurrency: {promised.concurrency}}}, or promise a rate"
                problem = f"the SLO promises {promised.concurrency} concurrent requests"
                raise PlannerError(workload.file, f"streams.{name}.arrivals", stated, problem, remedy)
        elif promised.rate_rps is not None:
            own_rps = workload.mean_rate_rps(name)
            if stream.trace is None and abs(own_rps / promised.rate_rps - 1) > RATES_AGREE:
                problem = f"the SLO promises {promised.rate_rps:g} requests/s"
                remedy = "make the two rates equal, or leave rate_rps out of the SLO"
                raise PlannerError(workload.file, f"streams.{name}.arrivals", own_rps, problem, remedy)
            workload = workload.at_rate(name, promised.rate_rps)
    return workload


def _draw(name: str, stream: Stream, seed: int, n: int) -> Sample:
    assert stream.lengths is not None and stream.arrivals is not None
    # Each concern has numbers of its own, so that changing one law leaves the draws of the others alone.
    length, gap, turn, prefix = _generators(name, seed, 4)
    isl, osl = stream.lengths.draw(length.random((n, LENGTH_DRAWS)))
    group, shared = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    if stream.prefix is not None:
        group, shared = stream.prefix.draw(prefix.random((n, 2)), isl)
    return Sample(
        arrival_s=stream.arrivals.times_s(gap.random(n), turn.random(SPELLS)),
        isl=isl,
        osl=osl,
        prefix=group,
        prefix_tokens=shared,
        stream=np.zeros(n, dtype=np.int64),
        recorded=np.full(n, -1, dtype=np.int64),
        streams=(name,),
    )


def _replay(name: str, trace: Trace, recording: Recording, seed: int, n: int) -> Sample:
    """The recording over and over, at its own rate or at `rate_rps`, until `n` requests have come."""
    jitter, thin = _generators(name, seed, 2)
    wanted_rps = trace.rate_rps or recording.mean_rate_rps
    layers = ceil(wanted_rps / recording.mean_rate_rps - 1e-9)
    kept_share = wanted_rps / (layers * recording.mean_rate_rps)
    rounds: list[tuple[Floats, Tokens]] = []
    found = 0
    while found < n:
        at_s, rows = _one_round(trace, recording, layers, jitter)
        keep = thin.random(len(at_s)) < kept_share if kept_share < 1 - 1e-12 else np.full(len(at_s), True)
        rounds.append((at_s[keep] + len(rounds) * recording.span_s, rows[keep]))
        found += len(rounds[-1][0])
    arrival_s = np.concatenate([at_s for at_s, _ in rounds])[:n] if rounds else np.zeros(0)
    rows = np.concatenate([rows for _, rows in rounds])[:n] if rounds else np.zeros(0, dtype=np.int64)
    return Sample(
        arrival_s=arrival_s,
        isl=recording.isl[rows],
        osl=recording.osl[rows],
        prefix=np.full(n, -1, dtype=np.int64),
        prefix_tokens=recording.shared_tokens[rows],
        stream=np.zeros(n, dtype=np.int64),
        recorded=rows,
        streams=(name,),
    )


def _one_round(trace: Trace, recording: Recording, layers: int, jitter: np.random.Generator) -> tuple[Floats, Tokens]:
    """One span of time: `layers` copies of the recording, each turned by a part of the span, in order."""
    n = len(recording)
    turned = [(recording.arrival_s + layer * recording.span_s / layers) % recording.span_s for layer in range(layers)]
    at_s = (np.concatenate(turned) + trace.bin_s * jitter.random(n * layers)) % recording.span_s
    order = np.argsort(at_s, kind="stable")
    return at_s[order], np.tile(np.arange(n, dtype=np.int64), layers)[order]


def _generators(name: str, seed: int, count: int) -> list[np.random.Generator]:
    """Independent generators that depend on the stream's own name, so that a new stream leaves the others alone."""
    root = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return [np.random.Generator(np.random.PCG64(child)) for child in root.spawn(count)]


def _merged(parts: list[Sample], n: int) -> Sample:
    arrival_s = np.concatenate([part.arrival_s for part in parts if part.arrival_s is not None])
    order = np.argsort(arrival_s, kind="stable")[:n]
    stream = np.concatenate([np.full(len(part), at, dtype=np.int64) for at, part in enumerate(parts)])
    return Sample(
        arrival_s=arrival_s[order],
        isl=np.concatenate([part.isl for part in parts])[order],
        osl=np.concatenate([part.osl for part in parts])[order],
        prefix=np.concatenate([part.prefix for part in parts])[order],
        prefix_tokens=np.concatenate([part.prefix_tokens for part in parts])[order],
        stream=stream[order],
        recorded=np.concatenate([part.recorded for part in parts])[order],
        streams=tuple(part.streams[0] for part in parts),
    )
