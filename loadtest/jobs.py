"""Bodies of requests, and the simplest lists of jobs. Pure: the same arguments make the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loadtest.types import Job, LoadTestError

CHAT, COMPLETIONS = "/chat/completions", "/completions"


def body_tree(
    endpoint: str,
    model: str,
    prompt: str,
    max_tokens: int,
    extra: Mapping[str, Any] | None = None,
    *,
    stream: bool,
    system: str = "",
) -> dict[str, Any]:
    """One request's body before it is JSON. Raises LoadTestError for a route that we cannot read the answers of."""
    tree: dict[str, Any] = {"model": model}
    if endpoint.endswith(CHAT):
        first = [{"role": "system", "content": system}] if system else []
        messages = [*first, {"role": "user", "content": prompt}]
        tree |= {"messages": messages, "max_completion_tokens": max_tokens}
    elif endpoint.endswith(COMPLETIONS):
        tree |= {"prompt": f"{system}\n\n{prompt}" if system else prompt, "max_tokens": max_tokens}
    else:
        raise LoadTestError(f"{endpoint} is not a route that can be measured: take one of chat or text completions")
    if stream:
        tree |= {"stream": True, "stream_options": {"include_usage": True}}
    return {**tree, **(extra or {})}


def as_body(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def body(
    endpoint: str, model: str, prompt: str, max_tokens: int, extra: Mapping[str, Any] | None = None, *, stream: bool
) -> bytes:
    """One request's body. Raises LoadTestError for a route that we cannot read the answers of."""
    return as_body(body_tree(endpoint, model, prompt, max_tokens, extra, stream=stream))


def open_loop(bodies: Iterable[bytes], due_s: Sequence[float]) -> list[Job]:
    """Each request on its own, due at its time."""
    return [
        Job(number=number, body=one, session=number, due_s=float(at_s))
        for number, (one, at_s) in enumerate(zip(bodies, due_s, strict=True))
    ]


def closed_loop(bodies: Iterable[bytes]) -> list[Job]:
    """Each request on its own, sent when one of the slots is free."""
    return [Job(number=number, body=one, session=number) for number, one in enumerate(bodies)]


def sessions(
    conversations: Iterable[Sequence[bytes]], think_s: Iterable[Sequence[float]], due_s: Sequence[float] | None = None
) -> list[Job]:
    """Conversations: turn after turn, each some time after the previous one's end.

    `think_s` holds one pause for each turn; the first of a conversation is not used. Without `due_s` conversations
    begin as slots become free.
    """
    jobs: list[Job] = []
    for session, (turns, pauses) in enumerate(zip(conversations, think_s, strict=True)):
        for turn, (one, pause_s) in enumerate(zip(turns, pauses, strict=True)):
            due = float(due_s[session]) if due_s is not None and turn == 0 else None
            jobs.append(Job(len(jobs), one, session, turn, due, float(pause_s) if turn else 0.0))
    return jobs


def models_of(jobs: Iterable[Job]) -> list[str]:
    """The models that these jobs ask for, each once."""
    return sorted({str(json.loads(job.body).get("model", "")) for job in jobs})


def greedy(jobs: Iterable[Job], seed: int) -> list[Job]:
    """The same requests, asking for the likeliest token each time: two answers to one of them can be compared."""
    return [
        replace(job, body=json.dumps({**json.loads(job.body), "temperature": 0, "seed": seed}).encode()) for job in jobs
    ]
