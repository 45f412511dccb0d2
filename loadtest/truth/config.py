"""What a truth server is to do, and what it says it did. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Law(StrEnum):
    """How the time to the first token varies from request to request."""

    FIXED = "fixed"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True)
class TruthConfig:
    """Times in milliseconds from the arrival of a request; shares are probabilities per request."""

    ttft_ms: float = 200.0
    ttft_law: Law = Law.FIXED
    """EXPONENTIAL: drawn anew for each request, with `ttft_ms` as its mean."""
    gap_ms: float = 50.0
    tokens: int = 64
    """For requests that name no maximum."""
    tokens_per_event: int = 1
    role_ms: float | None = None
    """When a chunk with nothing but the role comes; None: never."""
    jitter: float = 0.0
    """Sigma of a log-normal factor on every wait, of median 1."""
    slots: int | None = None
    """Requests served at once; others queue, first come first served, before their TTFT begins. With answers of one
    token this is a queue whose capacity is known: `loadtest.truth.queues`."""
    stall_after_events: int | None = None
    stall_ms: float = 0.0
    usage: bool = True
    """False: no usage even where the request asks for it."""
    done: bool = True
    """False: streams end without `data: [DONE]`."""
    finish: bool = True
    """False: nor with a finish reason."""
    cut_share: float = 0.0
    """Reset by the peer after a random number of events."""
    error_share: float = 0.0
    error_status: int = 500
    stream_error_share: float = 0.0
    """An error event after half of the events, then the end."""
    invalid_share: float = 0.0
    """An event that is not JSON after half of the events."""
    endless_share: float = 0.0
    """All tokens come, but the stream never ends."""
    close_after_each: bool = False
    """Close every connection after its answer, without saying so."""
    seed: int = 0
    core: int | None = None
    realtime: bool = False
    """Ask for a real-time priority, so that other work on the machine does not disturb the schedule."""


@dataclass(frozen=True, slots=True)
class Written:
    """One request, seen by the server: monotonic nanoseconds, as in the client's records."""

    response_id: str
    status: int
    received_ns: int
    token_write_ns: tuple[int, ...]
    """Just before each event with tokens was handed to the socket."""
    late_max_ns: int
    """How late the server was against its own schedule, at worst."""


@dataclass(frozen=True, slots=True)
class TruthLog:
    """Everything that ended since the last reset, and the CPU time that it took."""

    written: tuple[Written, ...]
    cpu_s: float
    realtime: bool
