"""Words that the whole load test shares. Pure.

Times of a run are whole nanoseconds on the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from loadtest.moves import Moves

Times = NDArray[np.int64]


class LoadTestError(Exception):
    """A load test that cannot be run as asked: what is wrong, and what to do about it."""


class Interrupted(LoadTestError):
    """Ctrl-C or SIGTERM came before there was anything to keep."""


class Ending(StrEnum):
    """How the bytes of one exchange ended, seen from the socket."""

    COMPLETE = "complete"
    EOF = "closed before the end"
    RESET = "connection reset"
    TIMED_OUT = "timed out"
    NO_CONNECTION = "no connection"
    BAD_HTTP = "not valid HTTP"
    TOO_LONG = "too long"
    STOPPED = "stopped by us"
    UNSENT = "never sent"


class Outcome(StrEnum):
    """What became of a request, each in exactly one kind. Everything but OK misses the SLO."""

    OK = "ok"
    SHED = "shed"  # 429 or 503: the server chose not to serve it
    REJECTED = "rejected"  # any other status below 500 that is not 2xx: key, model, arguments
    SERVER_ERROR = "server_error"  # any other 5xx
    STREAM_ERROR = "stream_error"  # an error event inside a stream that began with 200
    CUT = "cut"  # the stream ended before its answer did
    EMPTY = "empty"  # ended well without a single token
    BAD_BODY = "bad_body"  # not what the route promises: invalid events, no JSON, another content type, no end
    BAD_HTTP = "bad_http"
    NO_CONNECTION = "no_connection"
    TIMED_OUT = "timed_out"
    UNFINISHED = "unfinished"  # still running when the test was stopped
    UNSENT = "unsent"  # due, but the test was stopped before it was sent


class Flag(StrEnum):
    """What was odd about a request, whatever its outcome."""

    NO_DONE = "no_done"  # finished, but without `data: [DONE]`
    NO_USAGE = "no_usage"  # no token count: events are counted as one token each
    FIRST_TOKENS_GUESSED = "first_tokens_guessed"  # bundled tokens: those of the first event are the mean
    PROMPT_MISCOUNTED = "prompt_miscounted"  # the server counted another number of prompt tokens than was planned
    STALLED = "stalled"  # a gap above the stall limit
    RESENT = "resent"  # its idle connection had died, and it went out again on a new one


@dataclass(frozen=True, slots=True)
class Promise:
    """Of `metric` (ttft, tpot or e2e) the `percentile` over all requests due, or the mean (None), is at most this."""

    metric: str
    percentile: float | None
    limit_ms: float


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds; None is no limit. A request meets the SLO when it meets all of them.

    The load as a whole meets it when a share of at least `attainment` of the requests does, and the `promises` are
    kept.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    max_gap_ms: float | None = None
    attainment: float = 0.95
    promises: tuple[Promise, ...] = ()

    def __bool__(self) -> bool:
        limits = (self.ttft_ms, self.tpot_ms, self.e2e_ms, self.max_gap_ms)
        return bool(self.promises) or any(limit is not None for limit in limits)

    @property
    def needs_streams(self) -> bool:
        """An answer in one piece has one instant: there is no telling its first token from its last."""
        limits = (self.ttft_ms, self.tpot_ms, self.max_gap_ms)
        return any(limit is not None for limit in limits) or any(one.metric != "e2e" for one in self.promises)


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send.

    `due_s` counts from the start of the run. None means, for a first turn: as soon as one of the run's slots is free (a
    closed loop). A later turn is due `think_s` after the session's previous turn ended, and not before its `due_s`.

    A turn that `continues` has only its own new message in `body`: all that was said in the session before, the
    received answers among it, is put in front when it is sent. `prompt_tokens` is what the server should count.
    """

    number: int
    body: bytes
    session: int
    turn: int = 0
    due_s: float | None = None
    think_s: float = 0.0
    slo_class: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    continues: bool = False
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests go. `headers` may hold a key, so a Target is never written into results."""

    base_url: str
    endpoint: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str | None = None
    verify_tls: bool = True
    relay_port: int | None = None
    """Of this machine: the load connects to it, as to the server."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run, so that nothing in it hangs."""

    concurrency: int | None = None
    """Requests in flight at most, over all workers; those kept back still count from their due time."""
    stop_after_s: float | None = None
    """No request is sent later than this after the start."""
    timeout_s: float = 600.0
    """From sending a request to its end."""
    idle_timeout_s: float | None = None
    """Between two reads of one answer."""
    connect_timeout_s: float = 10.0
    drain_s: float | None = None
    """How long to wait for running requests after the last was sent; None: until each ends or times out."""
    answer_bytes: int = 64 << 20
    """Of one answer at most, head and framing included; it is kept in memory until it has ended."""
    answers_bytes: int = 4 << 30
    """Of all answers under way in one worker: beyond it, the longest are ended."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The raw bytes of one request's answer with the instant of every read, as kept by the client."""

    number: int
    ending: Ending
    detail: str
    due_ns: int
    held_ns: int  # how long the concurrency limit kept it back
    send_ns: int  # 0: never sent
    end_ns: int
    reused: bool
    resent: bool
    read_ns: list[int]
    pieces: list[bytes]
    connect_ns: int = 0  # how long its connection took to open; 0 where an idle one was there


@dataclass(frozen=True, slots=True)
class Record:
    """One request after the run: its five instants, and what was in its answer.

    `first_ns` and `last_ns` are those of events that carried generated tokens; 0 where there was none. `end_ns` is the
    clean end or the failure. `event_ns` holds the instant of every such event.
    """

    number: int
    session: int
    turn: int
    slo_class: str
    outcome: Outcome
    detail: str
    flags: tuple[Flag, ...]
    status: int
    due_ns: int
    held_ns: int
    send_ns: int
    first_ns: int
    last_ns: int
    end_ns: int
    event_ns: Times = field(repr=False)
    output_tokens: int
    first_tokens: int
    prompt_tokens: int | None
    streamed: bool
    finish_reason: str
    response_id: str
    reused: bool
    text: str | None = None
    moves: Moves | None = None
    """None: the server told nothing of moves."""
    connect_ns: int = 0
    """How long its connection took to open; 0 where an idle one was there."""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def ttft_ns(self) -> int | None:
        """From the due time: what the user waits, the client's own lag included."""
        return self.first_ns - self.due_ns if self.first_ns else None

    @property
    def ttft_net_ns(self) -> int | None:
        """From the instant of sending: what the server took."""
        return self.first_ns - self.send_ns if self.first_ns else None

    @property
    def lag_ns(self) -> int | None:
        """How late we sent it ourselves. What the concurrency limit and a new connection took is not ours."""
        return self.send_ns - self.due_ns - self.held_ns - self.connect_ns if self.send_ns else None

    @property
    def e2e_ns(self) -> int | None:
        """From the due time to the last token, or to the end of an answer that is not a stream."""
        if self.streamed:
            return self.last_ns - self.due_ns if self.last_ns else None
        return self.end_ns - self.due_ns

    @property
    def tpot_ns(self) -> float | None:
        """Time per output token after the first event's; None for answers of one event."""
        later_tokens = self.output_tokens - self.first_tokens
        if not self.streamed or not self.first_ns or later_tokens <= 0:
            return None
        return (self.last_ns - self.first_ns) / later_tokens

    @property
    def gaps_ns(self) -> Times:
        """Between token events: what a reader of the stream sees."""
        return np.diff(self.event_ns)
