"""Ferry's own time series, all in one place. Engines keep vLLM's `vllm:*` families (serving.engine.meter).

Seconds everywhere; `_total` on counters; label cardinality bounded by pools and fixed words.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# vLLM's buckets for the same quantities (vllm/v1/metrics/loggers.py), so that panels compare.
TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0),
)
ITL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
E2E_BUCKETS_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)
GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


class GatewayMetrics:
    """What one gateway measures. The registry is injected; every family carries `model_name` and `gateway`."""

    def __init__(self, registry: CollectorRegistry, *, model_name: str, gateway: str):
        self._registry = registry
        labels = {"model_name": model_name, "gateway": gateway}

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, [*labels], buckets=buckets, registry=registry).labels(**labels)

        def counter(name: str, help_text: str, *own: str) -> Counter:
            return Counter(name, help_text, [*labels, *own], registry=registry)

        self._labels = labels
        self.ttft_s = histogram("ferry:time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS_S)
        self.itl_s = histogram("ferry:inter_token_latency_seconds", "Between token events of a stream.", ITL_BUCKETS_S)
        self.e2e_s = histogram("ferry:e2e_request_latency_seconds", "From arrival to the last token.", E2E_BUCKETS_S)
        self.move_gap_s = histogram(
            "ferry:move_gap_seconds", "Between the last token before a move and the first after it.", GAP_BUCKETS_S
        )
        self.in_flight = Gauge(
            "ferry:requests_in_flight", "Contexts that this gateway owns.", [*labels], registry=registry
        ).labels(**labels)
        self.prompt_tokens = counter("ferry:prompt_tokens", "Prompt tokens admitted.").labels(**labels)
        self.generation_tokens = counter("ferry:generation_tokens", "Tokens delivered.").labels(**labels)
        self.move_bytes = counter("ferry:move_bytes", "KV bytes that moves carried.").labels(**labels)
        self.recomputed_tokens = counter(
            "ferry:recomputed_tokens", "Tokens computed again because a move could not carry their KV."
        ).labels(**labels)
        self.fenced_tokens = counter("ferry:fenced_tokens", "Tokens of older legs, dropped.").labels(**labels)
        self._requests = counter("ferry:requests", "Contexts ended, by outcome.", "outcome")
        self._moves = counter("ferry:moves", "Moves of contexts, by reason and mode.", "reason", "mode")

    def ended(self, outcome: str) -> None:
        """Count a context's end: stop, length, error; abort is a client that left or a stop string that vLLM found."""
        self._requests.labels(**self._labels, outcome=outcome).inc()

    def moved(self, *, reason: str, mode: str) -> None:
        """Count a move: reason prefill_done or engine_lost; mode kv or replay."""
        self._moves.labels(**self._labels, reason=reason, mode=mode).inc()

    def exposition(self) -> str:
        """Prometheus text."""
        return generate_latest(self._registry).decode()


def merge(expositions: list[str]) -> str:
    """One valid exposition from several: each family's HELP and TYPE once, its samples together."""
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for text in expositions:
        family = ""
        for line in text.split("\n"):  # and at nothing else: label values may hold other line ends
            if line.startswith(("# HELP ", "# TYPE ")):
                _, word, family, *_ = line.split(" ", 3)
                heads.setdefault(family, {}).setdefault(word, line)
            elif line and not line.startswith("#"):
                heads.setdefault(family, {})
                samples.setdefault(family, []).append(line)
    lines = [line for family in heads for line in (*heads[family].values(), *samples.get(family, ()))]
    return "\n".join(lines) + "\n"
