"""What a recording of real traffic says, whatever its format. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request.

    `at_s` counts from the trace's begin. Where `think_s` is given the turn follows that long after the end of the
    session's previous one, and `at_s` is only when that was in the recording. Equal `block_ids` of one trace are equal
    prompt blocks of `block_tokens` tokens.
    """

    at_s: float
    input_tokens: int | None
    output_tokens: int | None
    session: str = ""
    """Empty: a request on its own."""
    turn: int = 0
    think_s: float | None = None
    block_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    model: str = ""
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that could not be used, counted from 1; `text` is how it begins."""

    number: int
    why: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """Requests in order of `at_s`, and what had to be left out."""

    requests: tuple[TraceRequest, ...]
    bad_lines: tuple[BadLine, ...] = ()

    @property
    def duration_s(self) -> float:
        return self.requests[-1].at_s if self.requests else 0.0
