"""The report as a document that tools exchange (`ferry-load/1`), read back with types. Pure.

`report.as_json` writes it for a run of ours; `exchange` writes it for results of other tools. What a source does not
say is null and stands under `missing`; it is never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.cost import Cost
from loadtest.drill.report import DrillReport
from loadtest.judge import Judged
from loadtest.moves import MovesTotal
from loadtest.types import LoadTestError
from loadtest.watch.summary import ServerTotal

FORMAT = "ferry-load/1"
# Ours print these; a document may hold others.
METRICS = ("ttft", "ttft_net", "tpot", "gap", "max_gap", "e2e")


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """One metric in milliseconds, by percentile (`p50`). `all_ms` counts what did not complete as infinite."""

    count: int | None = None
    mean_ms: float | None = None
    max_ms: float | None = None
    completed_ms: Mapping[str, float | None] = field(default_factory=dict)
    all_ms: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttainmentFigures:
    due: int
    met: int
    low: float
    high: float
    share: float | None


@dataclass(frozen=True, slots=True)
class SummaryFigures:
    window_s: float | None = None
    due: int | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    attainment: AttainmentFigures | None = None
    goodput_rps: float | None = None
    due_rps: float | None = None
    completed_rps: float | None = None
    output_tokens_per_s: float | None = None
    mean_prompt_tokens: float | None = None
    mean_output_tokens: float | None = None
    metrics: Mapping[str, MetricFigures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the figures come from, if not from us, and how its words map to ours."""

    tool: str
    version: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """`client`: what the run says of itself; null for tools that say nothing."""

    run_id: str
    verdict: str
    total: SummaryFigures
    format: str = FORMAT
    started_at_s: float | None = None
    interrupted: bool = False
    certain: bool = False
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, SummaryFigures] = field(default_factory=dict)
    client: Mapping[str, Any] | None = None
    moves: MovesTotal | None = None
    server: ServerTotal | None = None
    cost: Cost | None = None
    drill: DrillReport | None = None
    judged: Mapping[str, Judged] = field(default_factory=dict)
    """By SLO class."""
    definitions: Mapping[str, str] = field(default_factory=dict)
    source: Source | None = None
    missing: tuple[str, ...] = ()

    @property
    def warmup_s(self) -> float:
        """Requests due earlier than this count in no figure."""
        told = self.spec.get("warmup_s")
        return float(told) if isinstance(told, int | float) else 0.0


def decode(data: bytes, name: str) -> Document:
    """Raises LoadTestError, with `name`, for what is not such a document."""
    try:
        tree = msgspec.json.decode(data)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise LoadTestError(f"{name} is no {FORMAT} document")
        for summary in (tree.get("total"), *(tree.get("classes") or {}).values()):
            _read_infinities(summary)
        for judged in (tree.get("judged") or {}).values():
            _read_measured(judged)
        return msgspec.convert(tree, Document, str_keys=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LoadTestError(f"{name} is no {FORMAT} document: {error}") from error


def encode(document: Document) -> bytes:
    """Strict JSON: "inf" stands for infinity, null for what is missing."""
    tree = finite(msgspec.to_builtins(document))
    return msgspec.json.format(msgspec.json.encode(tree)) + b"\n"


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: "inf" stands for the one, null for the other."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def _read_infinities(summary: Any) -> None:
    """Only figures are looked at: an outcome's detail may be the word "inf"."""
    metrics = summary.get("metrics") if isinstance(summary, dict) else None
    for metric in metrics.values() if isinstance(metrics, dict) else ():
        figures = [metric, *(metric.get(key) for key in ("completed_ms", "all_ms"))] if isinstance(metric, dict) else []
        for some in figures:
            if isinstance(some, dict):
                some.update({key: math.inf for key, value in some.items() if value == "inf"})


def _read_measured(judged: Any) -> None:
    """What a promise measured: infinite where too many did not complete, NaN where nothing was seen."""
    for one in judged.get("promises") or () if isinstance(judged, dict) else ():
        if isinstance(one, dict) and one.get("measured_ms") in ("inf", None):
            one["measured_ms"] = math.inf if one.get("measured_ms") == "inf" else math.nan
