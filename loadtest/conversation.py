"""What was said in sessions whose later turns carry it: the next request is made of the answers received so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.reading import Answer, read_answer
from loadtest.types import Job

# Chat templates want an answer between two questions, also where none came.
NO_ANSWER = "(no answer)"


@dataclass(slots=True)
class _Talk:
    """One session: messages so far, or the text so far of a completion."""

    continuing: int  # turns to come that carry what was said
    messages: list[Any] = field(default_factory=list)
    text: str = ""
    tool_calls: tuple[str, ...] = ()
    unheard: tuple[list[int], list[bytes]] | None = None


class Conversations:
    """Keeps what is needed of them and no more: sessions of single turns cost nothing."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._talks: dict[int, _Talk] = {}
        for job in jobs:
            if job.continues:
                self._talks.setdefault(job.session, _Talk(0)).continuing += 1
        self._bodies = {job.number: job.body for job in jobs if job.session in self._talks}
        self._unheard: dict[int, _Talk] = {}

    def carry(self, session: int) -> bool:
        """True if a later turn of the session needs what is answered now."""
        talk = self._talks.get(session)
        return talk is not None and talk.continuing > 0

    def ended(self, job: Job, read_ns: list[int], pieces: list[bytes]) -> None:
        """A turn is over; these bytes came. They are read later, when there is time or need."""
        if not self.carry(job.session):
            return
        talk = self._talks[job.session]
        talk.unheard = read_ns, pieces
        self._unheard[job.session] = talk
        if not job.continues:
            self._say(talk, msgspec.json.decode(self._bodies[job.number]))

    def hear_one(self) -> bool:
        """Read one answer that waits; False if none does."""
        if not self._unheard:
            return False
        _, talk = self._unheard.popitem()
        _hear(talk)
        return True

    def body(self, job: Job) -> bytes:
        """The whole body of a turn that continues its session."""
        talk = self._talks[job.session]
        if self._unheard.pop(job.session, None) is not None:
            _hear(talk)
        talk.continuing -= 1
        tree = msgspec.json.decode(self._bodies[job.number])
        self._say(talk, tree)
        return msgspec.json.encode(tree)

    def _say(self, talk: _Talk, tree: dict[str, Any]) -> None:
        """Add the new question to what was said, and put all of it into the request."""
        if "prompt" in tree:
            talk.text = tree["prompt"] = f"{talk.text} {tree['prompt']}" if talk.text else tree["prompt"]
            return
        messages = tree["messages"]
        if talk.tool_calls:
            # The model waits for what its tools found: that is what comes next.
            found = messages[-1]["content"]
            messages = [{"role": "tool", "tool_call_id": call, "content": found} for call in talk.tool_calls]
            talk.tool_calls = ()
        talk.messages += messages
        tree["messages"] = talk.messages


def _hear(talk: _Talk) -> None:
    assert talk.unheard is not None
    answer = read_answer(*talk.unheard)
    talk.unheard = None
    said = "".join(answer.contents)
    if not talk.messages:
        talk.text += said
        return
    calls = _tool_calls(answer)
    message: dict[str, Any] = {"role": "assistant", "content": said or (None if calls else NO_ANSWER)}
    if calls:
        message["tool_calls"] = calls
        talk.tool_calls = tuple(call["id"] for call in calls)
    talk.messages.append(message)


def _tool_calls(answer: Answer) -> list[dict[str, Any]]:
    """Whole calls out of the deltas that a stream brings; what makes no whole call is left out."""
    calls: dict[int, dict[str, Any]] = {}
    for number, delta in enumerate(answer.tool_calls):
        if not isinstance(delta, dict):
            continue
        function, index = delta.get("function"), delta.get("index")
        if not isinstance(function, dict):
            function = {}
        call = calls.setdefault(index if isinstance(index, int) else number, {"id": "", "name": "", "arguments": ""})
        call["id"] = _text(delta.get("id")) or call["id"]
        call["name"] = _text(function.get("name")) or call["name"]
        call["arguments"] += _text(function.get("arguments"))
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"] or "{}"},
        }
        for call in calls.values()
        if call["id"] and call["name"]
    ]


def _text(found: Any) -> str:
    """What a server sends in the place of a text need not be one."""
    return found if isinstance(found, str) else ""
