"""GuideLLM's `benchmarks.json`, which holds one result per load. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.document import Document, MetricFigures, Source
from loadtest.exchange.shaping import document, summary
from loadtest.exchange.tree import at, number, ratio, text, whole

NOTES = (
    "its TTFT begins when the request's first byte is written: here ttft_net",
    "its inter-token latency is (last - first) / (tokens - 1), weighted by tokens: here tpot",
    "its time per output token is the whole latency / tokens, TTFT included: here tpot_with_ttft",
    "its request latency begins when the request is sent: here e2e_net",
    "its percentiles are over successful requests; those it cancelled at the end stand as incomplete",
)
# In milliseconds, but for the last.
NAMES = {
    "time_to_first_token_ms": ("ttft_net", 1.0),
    "inter_token_latency_ms": ("tpot", 1.0),
    "time_per_output_token_ms": ("tpot_with_ttft", 1.0),
    "request_latency": ("e2e_net", 1e3),
}
SHARES = {"p50": "p50", "p75": "p75", "p90": "p90", "p95": "p95", "p99": "p99", "p999": "p99.9"}


def is_guidellm(tree: Any) -> bool:
    benchmarks = at(tree, "benchmarks")
    return isinstance(benchmarks, list) and all(at(one, "metrics", "request_totals") is not None for one in benchmarks)


def read_guidellm(tree: Mapping[str, Any], raw: bytes) -> list[Document]:
    """One document per load."""
    return [_one(tree, benchmark, raw, place) for place, benchmark in enumerate(tree["benchmarks"])]


def _one(tree: Mapping[str, Any], benchmark: Mapping[str, Any], raw: bytes, place: int) -> Document:
    metrics = at(benchmark, "metrics")
    window_s = number(benchmark, "duration")
    started_at_s = number(benchmark, "start_time")
    tokens = number(metrics, "output_token_count", "successful", "total_sum")
    completed = whole(metrics, "request_totals", "successful")
    total = summary(
        window_s=window_s,
        completed=completed,
        broken={
            "incomplete": whole(metrics, "request_totals", "incomplete"),
            "errored": whole(metrics, "request_totals", "errored"),
        },
        good=None,  # its goodput is a search of its own, and no figure of a run
        output_tokens_per_s=ratio(tokens, window_s),
        prompt_tokens=_mean(metrics, "prompt_token_count"),
        output_tokens=_mean(metrics, "output_token_count"),
        metrics={ours: _metric(metrics, theirs, in_ms) for theirs, (ours, in_ms) in NAMES.items()},
    )
    strategy = at(benchmark, "config", "strategy") or {}
    spec = {
        "models": [model] if (model := text(tree, "args", "model")) else [],
        "limits": {"concurrency": whole(strategy, "streams") or whole(strategy, "max_concurrency")},
        "request_rate": number(strategy, "rate"),
        "strategy": text(strategy, "type_"),
    }
    source = Source("GuideLLM", text(tree, "metadata", "guidellm_version"), NOTES)
    return document(raw, place, source, total, spec, started_at_s if (started_at_s or 0) > 0 else None)


def _metric(metrics: Any, theirs: str, in_ms: float) -> MetricFigures | None:
    """None where there are no values: it then writes 0 everywhere, also for what an answer without stream lacks."""
    found = at(metrics, theirs, "successful")
    count, most = whole(found, "count"), number(found, "max")
    if not count or not most:
        return None
    mean = number(found, "mean")
    shares = {ours: number(found, "percentiles", theirs_) for theirs_, ours in SHARES.items()}
    return MetricFigures(
        count=count if theirs != "inter_token_latency_ms" else None,  # there it counts tokens
        mean_ms=mean * in_ms if mean is not None else None,
        max_ms=most * in_ms,
        completed_ms={share: value * in_ms for share, value in shares.items() if value is not None},
    )


def _mean(metrics: Any, name: str) -> float | None:
    return number(metrics, name, "successful", "mean") if whole(metrics, name, "successful", "count") else None
