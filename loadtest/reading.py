"""From the raw bytes of an exchange to a Record: what came, when, and how it ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest import openai
from loadtest.http.framing import BadHttp, Framing
from loadtest.moves import MovesUsage, ToldMove, moves_of, told_move
from loadtest.sse import EventReader
from loadtest.types import Ending, Exchange, Flag, Job, Outcome, Record

EVENT_STREAM = b"text/event-stream"
JSON = b"application/json"
SHED_STATUSES = frozenset({429, 503})

_BY_ENDING = {
    Ending.UNSENT: Outcome.UNSENT,
    Ending.NO_CONNECTION: Outcome.NO_CONNECTION,
    Ending.TIMED_OUT: Outcome.TIMED_OUT,
    Ending.STOPPED: Outcome.UNFINISHED,
    Ending.BAD_HTTP: Outcome.BAD_HTTP,
    Ending.TOO_LONG: Outcome.BAD_BODY,
}


@dataclass(slots=True)
class Answer:
    """What an answer said, as far as it came."""

    status: int = 0
    streamed: bool = False
    event_ns: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    tool_calls: list[Any] = field(default_factory=list)
    response_id: str = ""
    finish_reason: str = ""
    done: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    first_tokens: int | None = None
    listed_tokens: int = 0  # as token ids
    error: str = ""
    bad: str = ""
    moves: list[ToldMove] = field(default_factory=list)
    moves_usage: MovesUsage | None = None
    body: bytearray = field(default_factory=bytearray)
    rest: bytes = b""


def read_exchange(exchange: Exchange, job: Job, *, stall_ms: float, keep_text: bool) -> Record:
    """Classify one exchange. `stall_ms`: a gap above it is flagged. `keep_text`: the record holds the text too."""
    answer = read_answer(exchange.read_ns, exchange.pieces, closed_well=exchange.ending is Ending.COMPLETE)
    outcome, detail = classify(exchange, answer)
    output_tokens, first_tokens, guesses = _token_counts(answer)
    event_ns = np.array(answer.event_ns, dtype=np.int64)
    flags = list(guesses) if outcome is Outcome.OK else []
    if outcome is Outcome.OK and answer.streamed and not answer.done:
        flags.append(Flag.NO_DONE)
    if None not in (job.prompt_tokens, answer.prompt_tokens) and answer.prompt_tokens != job.prompt_tokens:
        flags.append(Flag.PROMPT_MISCOUNTED)
    if event_ns.size > 1 and np.diff(event_ns).max() > stall_ms * 1e6:
        flags.append(Flag.STALLED)
    if exchange.resent:
        flags.append(Flag.RESENT)
    return Record(
        number=job.number,
        session=job.session,
        turn=job.turn,
        slo_class=job.slo_class,
        outcome=outcome,
        detail=detail,
        flags=tuple(flags),
        status=answer.status,
        due_ns=exchange.due_ns,
        held_ns=exchange.held_ns,
        send_ns=exchange.send_ns,
        first_ns=int(event_ns[0]) if answer.streamed and event_ns.size else 0,
        last_ns=int(event_ns[-1]) if answer.streamed and event_ns.size else 0,
        end_ns=exchange.end_ns,
        event_ns=event_ns if answer.streamed else event_ns[:0],
        output_tokens=output_tokens,
        first_tokens=first_tokens,
        prompt_tokens=answer.prompt_tokens,
        streamed=answer.streamed,
        finish_reason=answer.finish_reason,
        response_id=answer.response_id,
        reused=exchange.reused,
        text="".join(answer.texts) if keep_text else None,
        moves=moves_of(answer.moves, answer.moves_usage),
        connect_ns=exchange.connect_ns,
    )


def read_answer(read_ns: list[int], pieces: list[bytes], *, closed_well: bool = True) -> Answer:
    """An event belongs to the instant of the read that brought its last byte.

    `closed_well`: a body that goes on until the connection is closed is whole; it is not where that broke, or we left.
    """
    answer = Answer()
    payload: list[bytes] = []
    framing = Framing(payload.append)
    events = EventReader()
    for at_ns, piece in zip(read_ns, pieces, strict=True):
        whole = True
        try:
            framing.feed(piece)
        except BadHttp:
            whole = False  # the exchange's ending says so already; what came before still counts
        if framing.status and not answer.status:
            answer.status = framing.status
            answer.streamed = framing.headers.get(b"content-type", b"").lower().startswith(EVENT_STREAM)
        for part in payload:
            if answer.streamed:
                for event in events.feed(part):
                    _take_comment(answer, event.comment, at_ns)
                    _take_event(answer, event.data, at_ns)
            else:
                answer.body += part
        payload.clear()
        if not whole:
            break
    if answer.streamed:
        for event in events.close():
            _take_event(answer, event.data, read_ns[-1])
        answer.rest = events.rest
    elif 200 <= answer.status < 300:
        if closed_well:
            framing.close()
        _take_body(answer, framing, read_ns[-1])
    return answer


def _take_comment(answer: Answer, comment: bytes, at_ns: int) -> None:
    if comment and (move := told_move(comment, at_ns)) is not None:
        answer.moves.append(move)


def _take_event(answer: Answer, data: bytes, at_ns: int) -> None:
    if not data:
        return
    if data == openai.DONE:
        answer.done = True
        return
    try:
        chunk = openai.decode(data)
    except openai.BadChunk as error:
        answer.bad = answer.bad or str(error)
        return
    _take_chunk(answer, chunk, at_ns)


def _take_body(answer: Answer, framing: Framing, at_ns: int) -> None:
    content_type = framing.headers.get(b"content-type", b"").lower()
    if not content_type.startswith(JSON):
        answer.bad = f"the content type is {openai.shown(content_type) or 'missing'}"
    elif framing.ended:
        _take_event(answer, bytes(answer.body), at_ns)


def _take_chunk(answer: Answer, chunk: openai.Chunk, at_ns: int) -> None:
    if chunk.error:
        answer.error = answer.error or openai.error_text(chunk.error)
        return
    answer.response_id = answer.response_id or chunk.id or ""
    choices = chunk.choices or ()
    tokens_before = answer.output_tokens
    if chunk.usage is not None:
        answer.prompt_tokens = chunk.usage.prompt_tokens
        answer.output_tokens = chunk.usage.completion_tokens
        answer.moves_usage = chunk.usage.ferry or answer.moves_usage
    grew = bool(choices) and tokens_before is not None and (answer.output_tokens or 0) > tokens_before
    carries = False
    for choice in choices:
        carries = openai.carries_tokens(choice) or carries
        answer.listed_tokens += len(choice.token_ids or ())
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        answer.texts.append(openai.text_of(choice))
        answer.contents.append(openai.content_of(choice))
        answer.tool_calls += openai.tool_calls_of(choice)
    if carries or grew:
        if not answer.event_ns:
            answer.first_tokens = (chunk.usage and chunk.usage.completion_tokens) or answer.listed_tokens or None
        answer.event_ns.append(at_ns)


def _token_counts(answer: Answer) -> tuple[int, int, list[Flag]]:
    """Output tokens, those of the first event, and which of them are guesses."""
    events = len(answer.event_ns)
    tokens = answer.output_tokens if answer.output_tokens is not None else answer.listed_tokens
    if not tokens:
        return events, min(events, 1), [Flag.NO_USAGE] if events else []
    if answer.first_tokens is not None:
        return tokens, answer.first_tokens, []
    mean = max(1, round(tokens / events)) if events else 0
    return tokens, mean, [Flag.FIRST_TOKENS_GUESSED] if mean > 1 else []


def classify(exchange: Exchange, answer: Answer) -> tuple[Outcome, str]:
    """The one kind that this exchange is of, and what to tell about it."""
    by_status = _by_status(answer)
    if answer.error and by_status is None:
        return Outcome.STREAM_ERROR, answer.error
    if exchange.ending in _BY_ENDING:
        return _BY_ENDING[exchange.ending], exchange.detail or exchange.ending.value
    if by_status is not None:
        return by_status, f"{answer.status} {answer.error or answer.bad or _error_body(answer)}".strip()
    if answer.bad:
        return Outcome.BAD_BODY, answer.bad
    finished = bool(answer.done or answer.finish_reason)
    if exchange.ending is not Ending.COMPLETE and not answer.done:
        return Outcome.CUT, f"{exchange.ending.value} after {len(answer.event_ns)} token events"
    if answer.streamed and answer.rest.strip() and not answer.done:
        return Outcome.BAD_BODY, f"the stream ends within an event: {openai.shown(answer.rest)}"
    if answer.streamed and not finished:
        return Outcome.CUT, "the stream ended with neither a finish reason nor [DONE]"
    if not answer.event_ns and not answer.output_tokens:
        return Outcome.EMPTY, "no token came"
    return Outcome.OK, ""


def _by_status(answer: Answer) -> Outcome | None:
    if answer.status in SHED_STATUSES:
        return Outcome.SHED
    if answer.status >= 500:
        return Outcome.SERVER_ERROR
    if answer.status and not 200 <= answer.status < 300:
        return Outcome.REJECTED
    return None


def _error_body(answer: Answer) -> str:
    body = bytes(answer.body)
    try:
        chunk = openai.decode(body)
    except openai.BadChunk:
        return openai.shown(body)
    return openai.error_text(chunk.error) if chunk.error else openai.shown(body)
