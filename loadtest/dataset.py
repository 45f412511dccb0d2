"""Recorded conversations with their texts: files as ShareGPT has them, and OpenAI messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loadtest.types import LoadTestError

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions in their order, each with the answer that was recorded (empty if none was)."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    dialogues: tuple[Dialogue, ...]
    left_out: tuple[str, ...]
    """Why some entries are not among them."""


def read_dataset(path: Path) -> Dataset:
    """A JSON list, or one JSON object per line, of `{"conversations": [{"from": "human", "value": …}, …]}` (ShareGPT),
    `{"messages": [{"role": "user", "content": …}, …]}` or `{"prompt": …}`.

    Raises:
        LoadTestError: if the file cannot be read, or not one entry can be used.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from error
    dialogues, left_out = [], []
    for where, entry in _entries(data):
        found = _dialogue(entry)
        if isinstance(found, Dialogue):
            dialogues.append(found)
        else:
            left_out.append(f"{where} of {path} was left out: {found}")
    if not dialogues:
        raise LoadTestError(f"{path} holds no conversation" + (f": {left_out[0]}" if left_out else ""))
    return Dataset(tuple(dialogues), tuple(left_out))


def _entries(data: bytes) -> Iterator[tuple[str, Any]]:
    """Each entry with its place; what is no JSON becomes None."""
    if data.lstrip().startswith(b"["):
        whole = _decoded(data)
        for number, entry in enumerate(whole if isinstance(whole, list) else [None], start=1):
            yield f"entry {number}", entry
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", _decoded(line)


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _dialogue(entry: Any) -> Dialogue | str:
    """The entry's conversation, or why it has none."""
    if not isinstance(entry, Mapping):
        return "no JSON object"
    if isinstance(entry.get("prompt"), str) and entry["prompt"].strip():
        return Dialogue((entry["prompt"],), ("",))
    said = _said(entry)
    if said is None:
        return "neither conversations, nor messages, nor a prompt"
    system = "\n\n".join(text for role, text in said if role == "system")
    turns = [(role, text) for role, text in said if role != "system"]
    while turns and turns[0][0] != "user":
        turns.pop(0)  # ShareGPT has conversations that begin with the end of an earlier one
    questions = [text for role, text in turns[0::2]]
    answers = [text for role, text in turns[1::2]]
    orderly = all(role == "user" for role, _ in turns[0::2]) and all(role == "assistant" for role, _ in turns[1::2])
    if not questions or not all(question.strip() for question in questions):
        return "no question in it"
    if not orderly:
        return "question and answer do not take turns"
    return Dialogue(tuple(questions), tuple(answers + [""] * (len(questions) - len(answers))), system)


def _said(entry: Mapping[str, Any]) -> Sequence[tuple[str, str]] | None:
    """Roles in OpenAI's words, and texts."""
    for key, role_key, text_key in (("conversations", "from", "value"), ("messages", "role", "content")):
        rows = entry.get(key)
        if not isinstance(rows, list):
            continue
        said = []
        for row in rows:
            role, text = (row.get(role_key), row.get(text_key)) if isinstance(row, Mapping) else (None, None)
            if not isinstance(role, str) or role not in _ROLES or not isinstance(text, str):
                return None
            said.append((_ROLES[role], text))
        return said
    return None
