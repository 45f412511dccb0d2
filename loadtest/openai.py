"""What an answer of OpenAI's chat and completion routes says, event by event. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.moves import Count, MovesUsage

DONE = b"[DONE]"
MAX_DETAIL_CHARS = 300


class Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    ferry: MovesUsage | None = None


class Words(msgspec.Struct):
    """A delta of a stream, or a whole message."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class Choice(msgspec.Struct):
    delta: Words | None = None
    message: Words | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One event's data, or the body of an answer that is no stream. Keys that we do not need are skipped."""

    id: str | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class BadChunk(Exception):
    """Data that is not what these routes send."""


_decoder = msgspec.json.Decoder(Chunk)


def decode(data: bytes) -> Chunk:
    """Raises BadChunk."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BadChunk(f"{error}: {shown(data)}") from error
    except UnicodeDecodeError as error:
        raise BadChunk(f"not UTF-8: {error}") from error
    except RecursionError as error:
        raise BadChunk(f"nested too deep: {shown(data)}") from error


def text_of(choice: Choice) -> str:
    """All readable text of a choice: reasoning, then content."""
    words = choice.delta or choice.message
    if words is None:
        return choice.text or ""
    return "".join((words.reasoning or words.reasoning_content or "", words.content or "", words.refusal or ""))


def content_of(choice: Choice) -> str:
    """What a client says back in its next turn: the content alone."""
    words = choice.delta or choice.message
    return (words.content or "") if words is not None else choice.text or ""


def tool_calls_of(choice: Choice) -> list[Any]:
    """Whole calls, or the deltas of them that a stream brings."""
    words = choice.delta or choice.message
    return (words.tool_calls or []) if words is not None else []


def carries_tokens(choice: Choice) -> bool:
    """True for content, reasoning and tool calls; False for the role alone, an empty text, a finish reason alone."""
    if choice.token_ids or choice.text:
        return True
    words = choice.delta or choice.message
    return words is not None and bool(
        words.content
        or words.reasoning
        or words.reasoning_content
        or words.tool_calls
        or words.refusal
        or words.function_call
    )


def error_text(error: Any) -> str:
    """What an error object says, whatever its shape."""
    if isinstance(error, dict):
        parts = [str(error[key]) for key in ("code", "type", "message") if error.get(key)]
        return ": ".join(parts)[:MAX_DETAIL_CHARS] or str(error)[:MAX_DETAIL_CHARS]
    return str(error)[:MAX_DETAIL_CHARS]


def shown(data: bytes) -> str:
    return data[:MAX_DETAIL_CHARS].decode(errors="replace")
