"""inference-perf's `summary_lifecycle_metrics.json`, or one of its stages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.document import Document, MetricFigures, Source
from loadtest.exchange.shaping import FAILED, document, summary
from loadtest.exchange.tree import at, number, whole

NOTES = (
    "its TTFT begins when the request is sent: here ttft_net",
    "its inter-token latency is the time between tokens, pooled, and 0 between those of one chunk: here gap",
    "its time per output token is per request, (last - first) / (tokens - 1): here tpot",
    "its normalized time per output token is the whole latency / tokens, TTFT included: here tpot_with_ttft",
    "its request latency begins when the request is sent: here e2e_net; how late it sent is its schedule delay",
    "its percentiles leave failed requests out",
)
NAMES = {
    "time_to_first_token": "ttft_net",
    "inter_token_latency": "gap",
    "time_per_output_token": "tpot",
    "normalized_time_per_output_token": "tpot_with_ttft",
    "request_latency": "e2e_net",
}
# In seconds.
SHARES = {"median": "p50", "p75": "p75", "p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p99.9"}


def is_inference_perf(tree: Any) -> bool:
    return number(tree, "load_summary", "count") is not None and at(tree, "successes", "latency") is not None


def read_inference_perf(tree: Mapping[str, Any], raw: bytes, place: int) -> Document:
    latency = at(tree, "successes", "latency")
    total = summary(
        window_s=number(tree, "benchmark_time_seconds"),
        completed=whole(tree, "successes", "count"),
        broken={FAILED: whole(tree, "failures", "count")},
        good=whole(tree, "successes", "goodput_metrics", "good_requests"),
        output_tokens_per_s=number(tree, "successes", "throughput", "output_tokens_per_sec"),
        prompt_tokens=number(tree, "successes", "prompt_tokens", "mean"),
        output_tokens=number(tree, "successes", "output_tokens", "mean"),
        metrics={ours: _metric(at(latency, theirs)) for theirs, ours in NAMES.items()},
    )
    # Only a stage tells what was asked of it; the model and the rest stand in other files of the folder.
    spec = {
        "limits": {"concurrency": whole(tree, "load_summary", "concurrency")},
        "request_rate": number(tree, "load_summary", "requested_rate"),
    }
    return document(raw, place, Source("inference-perf", None, NOTES), total, spec, None)


def _metric(found: Any) -> MetricFigures | None:
    """None for what an answer without stream lacks."""
    mean_s, most_s = number(found, "mean"), number(found, "max")
    if mean_s is None:
        return None
    shares_s = {ours: number(found, theirs) for theirs, ours in SHARES.items()}
    return MetricFigures(
        count=None,
        mean_ms=mean_s * 1e3,
        max_ms=most_s * 1e3 if most_s is not None else None,
        completed_ms={share: value_s * 1e3 for share, value_s in shares_s.items() if value_s is not None},
    )
