"""Answers of the HTTP routes in a form that can be compared: without ids and times, deltas joined, moves apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Drawn, or read from the clock, for each request.
FRESH = frozenset({"id", "created", "created_at", "completed_at", "item_id", "response_id", "call_id"})
# Strings that come in pieces.
PIECES = frozenset({"content", "text", "arguments", "reasoning", "delta", "partial_json"})
DELTAS = frozenset({"response.output_text.delta", "content_block_delta"})
TOLD = re.compile(r"^: ferry move mode=(\w+) reason=\w+ at_token=(\d+) ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. `moves` is the `ferry` object of its usage; `comments`: mode and token of each move told as one."""

    body: Any
    usage: dict[str, Any]
    moves: dict[str, Any]
    comments: list[tuple[str, int]]

    @property
    def output_tokens(self) -> int:
        found = self.usage.get("completion_tokens", self.usage.get("output_tokens"))
        assert isinstance(found, int)
        return found


def read_whole(text: str) -> Answer:
    """A JSON answer."""
    return _answer(json.loads(text), comments=[])


def read(text: str) -> Answer:
    """A streamed answer; it has an end."""
    lines = [line for line in text.splitlines() if line and not line.startswith(":")]
    events: list[dict[str, Any]] = []
    for line in lines:
        field, _, value = line.partition(": ")
        assert field in ("data", "event"), line
        if field == "data" and value != "[DONE]":
            events.append(json.loads(value))
    for name, data in pairwise(lines):
        if name.startswith("event: "):
            assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    ends = lines[-1] == "data: [DONE]" or events[-1]["type"] in ("response.completed", "response.incomplete")
    assert ends or events[-1]["type"] == "message_stop", lines[-1]
    assert len({event["id"] for event in events if "choices" in event}) <= 1, "one stream, one id"
    numbers = [event.pop("sequence_number") for event in events if "sequence_number" in event]
    assert numbers == list(range(len(numbers)))
    comments = [(mode, int(token)) for mode, token in TOLD.findall(text)]
    return _answer(_folded(events), comments=comments)


def _answer(body: Any, *, comments: list[tuple[str, int]]) -> Answer:
    *_, usage = _usages(body)
    moves = usage.pop("ferry")
    return Answer(body=_lasting(body), usage=usage, moves=moves, comments=comments)


def _usages(body: Any) -> Iterator[dict[str, Any]]:
    """Every usage that is told, in order; the last one is final."""
    for key, value in body.items() if isinstance(body, dict) else enumerate(body if isinstance(body, list) else ()):
        if key == "usage" and isinstance(value, dict):
            yield value
        yield from _usages(value)


def _lasting(body: Any) -> Any:
    """The same without what is drawn anew for each request."""
    if isinstance(body, dict):
        return {key: _lasting(value) for key, value in body.items() if key not in FRESH}
    return [_lasting(value) for value in body] if isinstance(body, list) else body


def _folded(events: list[dict[str, Any]]) -> list[Any]:
    """Events with their deltas joined: those of a choice into one, others with those that they follow."""
    choices: dict[int, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    for event in map(_lasting, events):
        if event.get("choices"):
            for choice in event["choices"]:
                one = {**event, "choices": [choice]}
                index = choice["index"]
                choices[index] = _joined(choices[index], one) if index in choices else one
        elif others and event.get("type") in DELTAS and others[-1].get("type") == event["type"]:
            others[-1] = _joined(others[-1], event)
        else:
            others.append(event)
    return [*(choices[index] for index in sorted(choices)), *others]


def _joined(first: Any, then: Any, key: str = "") -> Any:
    """Two deltas as one. What is no piece must stay as it is; if it does not, both are kept."""
    if first is None or then is None:
        return then if first is None else first
    if isinstance(first, dict) and isinstance(then, dict):
        return {k: _joined(first.get(k), then.get(k), k) for k in first | then}
    if isinstance(first, list) and isinstance(then, list):
        if not all(isinstance(one, dict) and "index" in one for one in first + then):
            return first + then
        by_index: dict[int, Any] = {}
        for one in first + then:
            by_index[one["index"]] = _joined(by_index.get(one["index"]), one)
        return list(by_index.values())
    if isinstance(first, str) and isinstance(then, str) and key in PIECES:
        return first + then
    return first if first == then else [first, then]


def differences(ours: Any, theirs: Any, tolerance: float, at: str = "") -> list[str]:
    """What is not equal, for people: floats may differ by `tolerance`, nothing else at all."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [d for key in ours for d in differences(ours[key], theirs[key], tolerance, f"{at}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, tolerance, f"{at}[{n}]")]
    close = isinstance(ours, float) and isinstance(theirs, float) and abs(ours - theirs) <= tolerance
    return [] if close or ours == theirs else [f"{at}: {ours!r} against {theirs!r}"]
