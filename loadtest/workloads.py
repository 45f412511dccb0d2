"""The planner's workload document as asks: what was planned for is what is sent. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from loadtest.asks import Ask
from loadtest.texts import Segment, key_of
from loadtest.types import LoadTestError
from planner import Sample, Stream, Workload


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a workload is sent: so many requests, or those due before a time, whichever ends first."""

    requests: int | None
    duration_s: float | None


def at_total_rate(workload: Workload, rate_rps: float) -> Workload:
    """All open streams faster or slower by one factor, so that together they come at this rate. Raises PlannerError."""
    names = [name for name, stream in workload.streams.items() if not _callers(stream)]
    rates = {name: workload.mean_rate_rps(name) for name in names}
    if not rates:
        raise LoadTestError("--request-rate cannot be had: all streams of the workload are closed loops")
    for name in names:
        workload = workload.at_rate(name, rate_rps * rates[name] / sum(rates.values()))
    return workload


def workload_asks(workload: Workload, bounds: Bounds, seed: int) -> list[Ask]:
    """Open streams merged in order of time; each caller of a closed loop is a session of its own.

    Raises:
        LoadTestError: if a closed loop has no number of requests.
        PlannerError: if the workload cannot be sampled.
    """
    asks: list[Ask] = []
    open_streams = {name: stream for name, stream in workload.streams.items() if not _callers(stream)}
    if open_streams:
        asks += _open_asks(replace(workload, streams=open_streams), bounds, seed)
    for name, stream in workload.streams.items():
        if _callers(stream):
            asks += _closed_asks(workload, name, bounds, seed, first_session=len(asks))
    return asks


def _open_asks(workload: Workload, bounds: Bounds, seed: int) -> list[Ask]:
    sample = _within(workload, bounds, seed)
    assert sample.arrival_s is not None
    return [
        replace(ask, due_s=at_s) for ask, at_s in zip(_lengths(workload, sample, seed), sample.arrival_s, strict=True)
    ]


def _within(workload: Workload, bounds: Bounds, seed: int) -> Sample:
    """A sample that ends where the first of the bounds does. A longer one begins with the shorter."""
    if bounds.duration_s is None:
        return workload.sample(seed, bounds.requests or 0)
    rate_rps = sum(workload.mean_rate_rps(name) for name in workload.streams)
    most = bounds.requests if bounds.requests is not None else math.inf
    tried = math.ceil(rate_rps * bounds.duration_s * 1.1) + 100
    while True:
        sample = workload.sample(seed, int(min(tried, most)))
        assert sample.arrival_s is not None
        if len(sample) >= most or sample.arrival_s[-1] >= bounds.duration_s:
            break
        tried *= 2
    return _first(sample, int(np.count_nonzero(sample.arrival_s < bounds.duration_s)))


def _first(sample: Sample, count: int) -> Sample:
    assert sample.arrival_s is not None
    return replace(
        sample,
        arrival_s=sample.arrival_s[:count],
        isl=sample.isl[:count],
        osl=sample.osl[:count],
        prefix=sample.prefix[:count],
        prefix_tokens=sample.prefix_tokens[:count],
        stream=sample.stream[:count],
        recorded=sample.recorded[:count],
    )


def _closed_asks(workload: Workload, name: str, bounds: Bounds, seed: int, first_session: int) -> Iterator[Ask]:
    """The callers take turns at the sample: each asks again some time after its answer has ended."""
    loop = workload.stream(name).arrivals
    assert loop is not None and loop.kind == "closed_loop"
    if bounds.requests is None:
        raise LoadTestError(f"stream {name} is a closed loop and needs --num-prompts: as many as it might send at most")
    sample = workload.sample_stream(name, seed, bounds.requests)
    for number, ask in enumerate(_lengths(workload, sample, seed)):
        turn, caller = divmod(number, loop.concurrency)
        yield replace(
            ask,
            session=first_session + caller,
            turn=turn,
            due_s=0.0 if turn == 0 else None,
            think_s=loop.think_s if turn else 0.0,
        )


def _lengths(workload: Workload, sample: Sample, seed: int) -> Iterator[Ask]:
    """Everything but the times."""
    rows = zip(
        sample.isl.tolist(), sample.osl.tolist(), sample.prefix.tolist(), sample.prefix_tokens.tolist(),
        sample.stream.tolist(), sample.recorded.tolist(), strict=True,
    )  # fmt: skip
    for number, (isl, osl, group, shared_tokens, stream, row) in enumerate(rows):
        name = sample.streams[stream]
        prefix: tuple[Segment, ...] = ()
        if group >= 0:
            prefix = (Segment(key_of(seed, name, "prefix", group), shared_tokens),)
        elif row >= 0 and workload.recordings[name].block_ids:
            recording = workload.recordings[name]
            prefix = block_segments(recording.block_ids[row], recording.block_tokens, seed, name)
        yield Ask(number, 0, None, isl, osl, slo_class=name, prefix=prefix)


def block_segments(ids: tuple[int, ...], tokens: int, *names: object) -> tuple[Segment, ...]:
    """Blocks of a trace: equal ids, equal text."""
    return tuple(Segment(key_of(*names, "block", block), tokens) for block in ids)


def _callers(stream: Stream) -> bool:
    return stream.arrivals is not None and stream.arrivals.kind == "closed_loop"
