"""aiperf's `profile_export_aiperf.json`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from loadtest.document import Document, MetricFigures, Source
from loadtest.exchange.shaping import FAILED, document, summary
from loadtest.exchange.tree import at, number, text, whole

NOTES = (
    "its TTFT begins just before the request is sent: here ttft_net",
    "its inter-token latency is per request, (last - first) / (tokens - 1): here tpot",
    "its inter-chunk latency is the time between chunks: here gap",
    "its request latency begins when the request is sent: here e2e_net",
    "its percentiles leave failed requests out",
)
NAMES = {
    "time_to_first_token": "ttft_net",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "gap",
    "request_latency": "e2e_net",
}
SHARES = ("p50", "p75", "p90", "p95", "p99")
MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}


def is_aiperf(tree: Any) -> bool:
    return text(tree, "aiperf_version") is not None or number(tree, "request_throughput", "avg") is not None


def read_aiperf(tree: Mapping[str, Any], raw: bytes, place: int) -> Document:
    duration = number(tree, "benchmark_duration", "avg")
    duration_ms = MS.get(text(tree, "benchmark_duration", "unit") or "sec")
    completed = whole(tree, "request_count", "avg")
    # It leaves the count of errors out when there are none, and then says so in an empty or missing summary.
    failed = whole(tree, "error_request_count", "avg")
    if failed is None and not at(tree, "error_summary") and completed is not None:
        failed = 0
    total = summary(
        window_s=duration * duration_ms / 1e3 if duration is not None and duration_ms is not None else None,
        completed=completed,
        broken={FAILED: failed},
        good=whole(tree, "good_request_count", "avg"),
        output_tokens_per_s=number(tree, "output_token_throughput", "avg"),
        prompt_tokens=number(tree, "input_sequence_length", "avg"),
        output_tokens=number(tree, "output_sequence_length", "avg"),
        metrics={ours: _metric(tree, theirs) for theirs, ours in NAMES.items()},
    )
    spec = {
        "models": at(tree, "input_config", "endpoint", "model_names") or [],
        "limits": {"concurrency": whole(tree, "input_config", "loadgen", "concurrency")},
        "request_rate": number(tree, "input_config", "loadgen", "request_rate"),
    }
    source = Source("aiperf", text(tree, "aiperf_version"), NOTES)
    return document(raw, place, source, total, spec, _seconds(text(tree, "start_time")))


def _metric(tree: Mapping[str, Any], theirs: str) -> MetricFigures | None:
    found = at(tree, theirs)
    in_ms = MS.get(text(found, "unit") or "")
    mean = number(found, "avg")
    if in_ms is None or mean is None:
        return None
    most = number(found, "max")
    return MetricFigures(
        count=whole(found, "count"),
        mean_ms=mean * in_ms,
        max_ms=most * in_ms if most is not None else None,
        completed_ms={share: value * in_ms for share in SHARES if (value := number(found, share)) is not None},
    )


def _seconds(told: str | None) -> float | None:
    """Since 1970; None without a time zone, which could be any."""
    try:
        when = datetime.fromisoformat(told) if told is not None else None
    except ValueError:
        return None
    return when.timestamp() if when is not None and when.tzinfo is not None else None
