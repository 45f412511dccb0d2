"""What the truth server says to one request, step by step: when, and which bytes. Pure."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

import msgspec

from loadtest.truth.config import Law, TruthConfig

NS_PER_MS = 1_000_000
WORDS = (" the", " of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was", " with", " be")
MODEL = "truth"

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"


class After(Enum):
    """What happens to the connection after a step."""

    GO_ON = auto()
    KEEP = auto()  # the answer has ended
    RESET = auto()
    HANG = auto()  # nothing more comes, and the connection stays


class Step(NamedTuple):
    wait_ns: int  # after the previous step was due
    data: bytes
    carries_tokens: bool = False
    after: After = After.GO_ON


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Ask(msgspec.Struct):
    """What the server looks at in a request's body."""

    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: StreamOptions | None = None


def plain(status: int, body: object) -> bytes:
    """A whole answer that is no stream."""
    data = json.dumps(body).encode()
    reason = "OK" if status == 200 else "Error"
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def script(config: TruthConfig, rng: random.Random, ask: Ask, chat: bool, number: int, prompt_tokens: int) -> Script:
    """The steps of one answer. They are made one at a time: making all at once would keep other requests waiting."""
    return _Scripter(config, rng, ask, chat, number, prompt_tokens).steps()


Script = Iterator[Step]


class _Scripter:
    def __init__(
        self, config: TruthConfig, rng: random.Random, ask: Ask, chat: bool, number: int, prompt_tokens: int
    ) -> None:
        self._config = config
        self._rng = rng
        self._ask = ask
        self._chat = chat
        self._number = number
        self._prompt_tokens = prompt_tokens
        self._tokens = ask.max_completion_tokens or ask.max_tokens or config.tokens
        self._events = math.ceil(self._tokens / config.tokens_per_event)
        options = ask.stream_options or StreamOptions()
        self._include_usage = options.include_usage and config.usage
        self._continuous = options.continuous_usage_stats and config.usage
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._begin = f'data: {{"id":"truth-{number}","object":"{kind}","created":1,"model":"{MODEL}","choices":['

    def steps(self) -> Script:
        config, rng = self._config, self._rng
        if rng.random() < config.error_share:
            error = {"message": "as it was told to", "type": "server_error", "code": config.error_status}
            yield Step(0, plain(config.error_status, {"error": error}), after=After.KEEP)
        elif not self._ask.stream:
            yield self._whole_answer()
        else:
            yield from self._stream()

    def _whole_answer(self) -> Step:
        config = self._config
        text = "".join(self._word(token) for token in range(self._tokens))
        body = {
            "id": f"truth-{self._number}",
            "choices": [{"index": 0, "text": text, "message": {"content": text}, "finish_reason": "length"}],
            "usage": self._usage(self._tokens),
        }
        return Step(
            self._first_token_ns() + self._jittered((self._events - 1) * config.gap_ms),
            plain(200, body),
            carries_tokens=True,
            after=After.KEEP,
        )

    def _stream(self) -> Script:
        config, rng = self._config, self._rng
        cut_after = rng.randrange(1, self._events + 1) if rng.random() < config.cut_share else 0
        broken = b""
        if rng.random() < config.stream_error_share:
            broken = _chunk(b'data: {"error":{"message":"as it was told to","code":500}}\n\n') + _LAST_CHUNK
        elif rng.random() < config.invalid_share:
            broken = _chunk(b"data: {half of an eve\n\n") + _chunk(b"data: [DONE]\n\n") + _LAST_CHUNK
        last = After.HANG if rng.random() < config.endless_share else After.KEEP
        head, waited_ms = _STREAM_HEAD, 0.0
        if config.role_ms is not None:
            yield Step(round(config.role_ms * NS_PER_MS), head + _chunk(self._role_event()))
            head, waited_ms = b"", config.role_ms
        wait_ns = self._first_token_ns() - round(waited_ms * NS_PER_MS)
        for event in range(self._events):
            data = head + _chunk(self._token_event(event))
            head = b""
            if broken and event >= self._events // 2:
                yield Step(wait_ns, broken, after=After.KEEP)
                return
            if event + 1 == cut_after:
                yield Step(wait_ns, data, carries_tokens=True, after=After.RESET)
                return
            if event + 1 == self._events:
                yield Step(wait_ns, data + self._end(last), carries_tokens=True, after=last)
                return
            yield Step(wait_ns, data, carries_tokens=True)
            wait_ns = self._jittered(config.gap_ms)
            if event + 1 == config.stall_after_events:
                wait_ns += round(config.stall_ms * NS_PER_MS)

    def _end(self, last: After) -> bytes:
        end = b""
        if self._include_usage:
            end += _chunk(f'{self._begin}],"usage":{json.dumps(self._usage(self._tokens))}}}\n\n'.encode())
        if self._config.done and last is After.KEEP:
            end += _chunk(b"data: [DONE]\n\n")
        return end + (_LAST_CHUNK if last is After.KEEP else b"")

    def _role_event(self) -> bytes:
        usage = f',"usage":{json.dumps(self._usage(0))}' if self._continuous else ""
        choice = '{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
        return f"{self._begin}{choice}]{usage}}}\n\n".encode()

    def _token_event(self, event: int) -> bytes:
        first = event * self._config.tokens_per_event
        after = min(first + self._config.tokens_per_event, self._tokens)
        text = "".join(self._word(token) for token in range(first, after))
        finish = '"length"' if after == self._tokens and self._config.finish else "null"
        words = f'"delta":{{"content":"{text}"}}' if self._chat else f'"text":"{text}"'
        usage = f',"usage":{json.dumps(self._usage(after))}' if self._continuous else ""
        return f'{self._begin}{{"index":0,{words},"logprobs":null,"finish_reason":{finish}}}]{usage}}}\n\n'.encode()

    def _usage(self, tokens: int) -> dict[str, int]:
        total = self._prompt_tokens + tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    def _word(self, token: int) -> str:
        return WORDS[(self._number * 7 + token) % len(WORDS)]

    def _first_token_ns(self) -> int:
        config = self._config
        factor = self._rng.expovariate(1.0) if config.ttft_law is Law.EXPONENTIAL else 1.0
        return self._jittered(config.ttft_ms * factor)

    def _jittered(self, wait_ms: float) -> int:
        factor = self._rng.lognormvariate(0.0, self._config.jitter) if self._config.jitter else 1.0
        return round(wait_ms * factor * NS_PER_MS)


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)
