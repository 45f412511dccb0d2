"""Reads Prometheus' text format and takes out what a load test wants to know. Pure.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. Engines are vLLM's (`vllm:*`) and, where a
pool is named in the labels, Ferry's; `ferry:*` are the gateway's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from loadtest.watch.types import EngineSample, ServerSample

_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'\s*(?P<name>[a-zA-Z_]\w*)\s*=\s*"(?P<value>(?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE = re.compile(r"\\(.)")

RUNNING, WAITING, KV = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
GAUGES = frozenset({RUNNING, WAITING, KV})

COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:num_preemptions_total": "preemptions",
        "vllm:prompt_tokens_total": "prompt_tokens",
        "vllm:generation_tokens_total": "generation_tokens",
        "vllm:prefix_cache_queries_total": "prefix_cache_queries",
        "vllm:prefix_cache_hits_total": "prefix_cache_hits",
        "ferry:moves_total": "moves",
        "ferry:move_bytes_total": "move_bytes",
        "ferry:recomputed_tokens_total": "recomputed_tokens",
        "ferry:fenced_tokens_total": "fenced_tokens",
        "ferry:requests_total": "requests",
    }
)
# The same of every series of an endpoint, so they tell nothing apart.
_DULL_LABELS = frozenset({"model_name"})


class Series(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def server_sample(text: str, at_ns: int, took_ns: int) -> ServerSample:
    """Raises ValueError for a line of a wanted series that is not valid. Other series give no engines."""
    gauges: dict[tuple[str, str], dict[str, float]] = {}
    counters: dict[str, dict[str, float]] = {}
    for series in parse(text, GAUGES | COUNTERS.keys()):
        if series.name in GAUGES:
            engine = series.labels.get("pool", ""), series.labels.get("engine", "")
            gauges.setdefault(engine, {})[series.name] = series.value
        else:
            by = counters.setdefault(COUNTERS[series.name], {})
            who = _who(series.labels)
            by[who] = by.get(who, 0.0) + series.value
    return ServerSample(at_ns, took_ns, _engines(gauges), counters)


def parse(text: str, wanted: Iterable[str]) -> Iterator[Series]:
    """The series of these names. Raises ValueError for one that cannot be read."""
    names = frozenset(wanted)
    for line in text.split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            raise ValueError(f"not a Prometheus sample: {line[:200]!r}")
        yield Series(name, _labels(found["labels"] or "", line), float(found["value"]))


def _labels(text: str, line: str) -> dict[str, str]:
    labels, at = {}, 0
    while at < len(text.rstrip()):
        found = _LABEL.match(text, at)
        if found is None:
            raise ValueError(f"not Prometheus labels: {line[:200]!r}")
        labels[found["name"]] = _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], found["value"])
        at = found.end()
    return labels


def _who(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()) if name not in _DULL_LABELS)


def _engines(gauges: Mapping[tuple[str, str], Mapping[str, float]]) -> tuple[EngineSample, ...]:
    return tuple(
        EngineSample(
            engine=engine,
            pool=pool,
            running=found.get(RUNNING, 0.0),
            waiting=found.get(WAITING, 0.0),
            kv_share=found.get(KV),
        )
        for (pool, engine), found in sorted(gauges.items())
    )
