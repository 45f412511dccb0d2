"""The message interface between gateways and engines: what crosses the wire, and nothing about how.

A message is a kind, a small msgpack header, and opaque payload frames: vLLM's own encoding of a request or of one
engine step's outputs. One message carries a whole step, whatever its batch: per-token messages cap a gateway near
5,000 tokens/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from serving.types import EngineInfo, Load

LEG_KEY = "ferry_leg"

Frames = list[Any]


class Kind(IntEnum):
    """Message kinds. The first six go to the engine, the others come from it."""

    HELLO = 1
    ADD = 2
    ABORT = 3
    CALL = 4
    PING = 5
    BYE = 6
    WELCOME = 16
    STEP = 17
    LOAD = 18
    REPLY = 19
    GONE = 20


class HandOff(StrEnum):
    """An engine's answer to the wish that a leg hand off."""

    AT_NEXT_TOKEN = "at_next_token"
    """The leg ends with its next token and keeps its KV blocks for a pull."""
    NO_KV = "no_kv"
    """The engine has no KV of it: start it elsewhere from the token log."""
    ENDING = "ending"
    """The context ends with its next token anyway."""
    GONE = "gone"
    """There is no such leg any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One stay of a context on an engine, as the engine needs to know it.

    `output_token_ids`: tokens generated on earlier legs. `handoff_at_tokens`: end the leg when the context has this
    many output tokens and keep its KV blocks for a pull; None runs to the end. `max_model_len` is the engine's.
    """

    output_token_ids: list[int]
    handoff_at_tokens: int | None = None
    max_model_len: int = 0


class Add(msgspec.Struct, frozen=True, array_like=True):
    """Header of ADD; the payload is vLLM's `EngineCoreRequest`."""

    leg_id: str
    prompt_tokens: int
    releases: bool = False
    """True for a request that only frees blocks at its source: it has no outputs and no owner."""
    copies: bool = False
    """True for a request that only fills the prefix cache ahead of a move: nobody's metrics count it."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Header of CALL: a method of the engine host by name. Arguments are plain msgpack values."""

    call_id: int
    method: str
    args: list[Any]


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """Header of REPLY: the result of a CALL, or why it failed."""

    call_id: int
    result: Any = None
    error: str | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Header of WELCOME: what the engine is."""

    replica_id: str
    info: EngineInfo


class Step(msgspec.Struct, frozen=True, array_like=True):
    """Header of STEP (payload: vLLM's `EngineCoreOutputs`) and of LOAD (no payload)."""

    load: Load


class Gone(msgspec.Struct, frozen=True, array_like=True):
    """Header of GONE: the engine core is dead or stopping; nothing more will come."""

    reason: str


HEADERS: dict[Kind, type] = {
    Kind.HELLO: type(None),
    Kind.ADD: Add,
    Kind.ABORT: list[str],
    Kind.CALL: Call,
    Kind.PING: type(None),
    Kind.BYE: type(None),
    Kind.WELCOME: Welcome,
    Kind.STEP: Step,
    Kind.LOAD: Step,
    Kind.REPLY: Reply,
    Kind.GONE: Gone,
}

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(header) for kind, header in HEADERS.items()
}


class MalformedMessage(ValueError):
    """A frame that is no message of this interface. The sender is at fault, never the reader."""


def pack(kind: Kind, header: Any = None, payload: Frames | tuple[Any, ...] = ()) -> Frames:
    """The frames of one message."""
    return [bytes((kind,)), _encoder.encode(header), *payload]


def unpack(frames: Frames) -> tuple[Kind, Any, Frames]:
    """Kind, header and payload of one message.

    Raises:
        MalformedMessage: on anything that `pack` does not make.
    """
    try:
        kind = Kind(bytes(frames[0])[0])
        return kind, _decoders[kind].decode(bytes(frames[1])), frames[2:]
    except (IndexError, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise MalformedMessage(f"{len(frames)} frames: {error}") from error
