"""What the flags of `ferry load run` say about the load. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.arrivals import Family
from loadtest.asks import Mix

DEFAULT_REQUESTS = 100
DEFAULT_OUTPUT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One load, before any file of it is read. Rates in requests per second, times in seconds, lengths in tokens."""

    endpoint: str
    model: str
    input_words: int
    """Tokens of each prompt, where a tokenizer counts them."""
    output_tokens: int | None
    """None: as a data set has them, else DEFAULT_OUTPUT_TOKENS."""
    ignore_eos: bool
    stream: bool
    seed: int
    request_rate_rps: float
    burstiness: float
    family: Family | None
    cv: float
    ramp_from_rps: float | None
    bursts: str
    rate_file: Path | None
    trace: Path | None
    trace_format: str
    trace_keep: float
    requests: int | None
    duration_s: float | None
    tokenizer: str = ""
    range_ratio: float = 0.0
    """Lengths are uniform between (1 - ratio) and (1 + ratio) of their mean."""
    input_cv: float = 0.0
    output_cv: float = 0.0
    prefix_tokens: int = 0
    prefix_groups: int = 1
    turns: int = 1
    think_s: float = 0.0
    think_cv: float = 0.0
    dataset: Path | None = None
    workload: Path | None = None
    slo: Path | None = None
    slo_class: str = ""
    """Of requests that no workload gives a class."""
    models: Mix = ()
    tenants: Mix = ()
    tenant_header: str = ""
    class_header: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of each body."""
    given: frozenset[str] = frozenset()
    """Flags that are not as they are by default; those that the load has no use for are refused."""

    @property
    def most_requests(self) -> int | None:
        """Of the whole load; None: all that are due in its duration."""
        return DEFAULT_REQUESTS if self.requests is None and self.duration_s is None else self.requests

    @property
    def lasts_s(self) -> float | None:
        """How long requests are due, where their time alone bounds them."""
        return self.duration_s if self.requests is None and self.trace is None else None

    @property
    def usual_output_tokens(self) -> int:
        """Where nothing else says how long an answer is."""
        return self.output_tokens or DEFAULT_OUTPUT_TOKENS
