"""ServeGen's clients of a model service: each with its own rate, burstiness and lengths, window by window. Pure.

A client's `chunk-N-trace.csv` has lines of `window start (s), rate, cv, family, shape, scale` without a header; its
`chunk-N-dataset.json` has, per window, histograms of token counts, each a Python dict in a string.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from planner.recorded import BadLine, RequestTrace, TraceRequest
from planner.types import PlannerError

WINDOW_S = 600.0
DRAWN_AT_ONCE = 256

_CHUNK = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
_BAR = re.compile(r"(\d+): ([0-9.e+-]+)")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Token counts and their cumulative probabilities."""

    values: tuple[int, ...]
    cumulative: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> int | None:
        if not self.values:
            return None
        place = bisect.bisect_left(self.cumulative, rng.random() * self.cumulative[-1])
        return self.values[min(place, len(self.values) - 1)]


def servegen_trace(
    files: Mapping[str, bytes], rng: np.random.Generator, *, begin_s: float = 0.0, duration_s: float | None = None
) -> RequestTrace:
    """Draw the requests of all clients from `begin_s` of the recording on.

    The recording spans days: give a `duration_s` unless all of it is wanted. Raises PlannerError if it is none.
    """
    traces: dict[int, bytes] = {}
    datasets: dict[int, bytes] = {}
    for name, data in files.items():
        found = _CHUNK.search(name)
        if found is not None:
            (traces if found[2] == "trace.csv" else datasets)[int(found[1])] = data
    if not traces:
        raise PlannerError("trace", "", None, "holds no chunk-N-trace.csv", "give ServeGen's folder or archive")
    until_s = begin_s + duration_s if duration_s is not None else float("inf")
    requests: list[TraceRequest] = []
    bad: list[BadLine] = []
    # Each client draws from a stream of its own, so that leaving one out changes no other.
    for (client, lines), own in zip(sorted(traces.items()), rng.spawn(len(traces)), strict=True):
        lengths = _lengths(datasets.get(client, b"{}"))
        for at_s in _arrivals(lines.decode().splitlines(), own, begin_s, until_s, bad):
            inputs, outputs = _in_window(lengths, at_s)
            requests.append(TraceRequest(at_s - begin_s, inputs.draw(own), outputs.draw(own)))
    return RequestTrace(tuple(sorted(requests, key=lambda one: one.at_s)), tuple(bad))


def _arrivals(
    lines: Iterable[str], rng: np.random.Generator, begin_s: float, until_s: float, bad: list[BadLine]
) -> list[float]:
    arrivals: list[float] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split(",")
        try:
            window_s, rate_rps = float(fields[0]), float(fields[1])
            if rate_rps <= 0 or window_s + WINDOW_S <= begin_s or window_s >= until_s:
                continue
            family, shape, scale = fields[3], float(fields[4]), float(fields[5])
            drawn = _window(family, shape, scale, rng)
        except (IndexError, ValueError) as error:
            bad.append(BadLine(number, f"{error}: {line!r}"))
            continue
        arrivals += [at_s for at_s in (window_s + offset for offset in drawn) if begin_s <= at_s < until_s]
    return arrivals


def _window(family: str, shape: float, scale: float, rng: np.random.Generator) -> list[float]:
    if not (shape > 0 and scale > 0):
        raise ValueError(f"shape {shape} and scale {scale} must be above 0")
    if family not in ("Gamma", "Weibull"):
        raise ValueError(f"{family!r} is neither Gamma nor Weibull")
    offsets: list[float] = []
    at_s = 0.0
    while True:
        gaps = (
            rng.gamma(shape, scale, DRAWN_AT_ONCE) if family == "Gamma" else scale * rng.weibull(shape, DRAWN_AT_ONCE)
        )
        for gap in gaps.tolist():
            at_s += gap
            if at_s >= WINDOW_S:
                return offsets
            offsets.append(at_s)


def _lengths(dataset: bytes) -> list[tuple[float, Histogram, Histogram]]:
    """Begin of each window that has lengths, with its histograms of input and output tokens."""
    windows = msgspec.json.decode(dataset, type=dict[str, dict[str, str]])
    found = [
        (float(begin), _histogram(bars.get("input_tokens", "")), _histogram(bars.get("output_tokens", "")))
        for begin, bars in windows.items()
    ]
    return sorted((one for one in found if one[1].values), key=lambda one: one[0])


def _histogram(bars: str) -> Histogram:
    pairs = [(int(value), float(share)) for value, share in _BAR.findall(bars)]
    return Histogram(tuple(value for value, _ in pairs), tuple(itertools.accumulate(share for _, share in pairs)))


def _in_window(lengths: list[tuple[float, Histogram, Histogram]], at_s: float) -> tuple[Histogram, Histogram]:
    """The latest lengths known at that time, or the first ones; none where the client has none."""
    if not lengths:
        return Histogram((), ()), Histogram((), ())
    place = bisect.bisect_right([begin for begin, _, _ in lengths], at_s) - 1
    _, inputs, outputs = lengths[max(place, 0)]
    return inputs, outputs
