"""How many tokens a request's prompt is: by the served model's tokenizer, here or at the endpoint, or by its words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from loadtest.endpoint import Asker
from loadtest.types import LoadTestError, Target

ENDPOINT = "endpoint"

Tree = Mapping[str, Any]
"""A request's body as parsed JSON: `messages` (and `tools`), or `prompt`."""


class Tokenizer(Protocol):
    """`exact`: that it counts what the served model counts. Whatever cannot be counted raises LoadTestError."""

    exact: bool

    def count(self, tree: Tree) -> int:
        """Tokens of the whole prompt, with all that the chat template adds."""
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a text within a prompt, nothing added."""
        ...


class WordCounter:
    """Takes each word for a token, and knows of no template."""

    exact = False

    def count(self, tree: Tree) -> int:
        if "prompt" in tree:
            return self.count_text(tree["prompt"])
        return sum(self.count_text(message["content"]) for message in tree["messages"])

    def count_text(self, text: str) -> int:
        return len(text.split())


class LocalTokenizer:
    """A tokenizer of transformers, from a folder or its cache. It never asks the network."""

    exact = True

    def __init__(self, name: str) -> None:
        # Takes seconds to import, which runs without a tokenizer need not pay.
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise LoadTestError(f"no tokenizer {name} is on this machine: {str(error).splitlines()[0]}") from error

    def count(self, tree: Tree) -> int:
        if "prompt" in tree:
            return len(self._tokenizer(tree["prompt"])["input_ids"])
        try:
            text = self._tokenizer.apply_chat_template(
                list(tree["messages"]), tools=tree.get("tools"), add_generation_prompt=True, tokenize=False
            )
        except ValueError as error:
            raise LoadTestError(f"the chat template cannot be used: {str(error).splitlines()[0]}") from error
        return self.count_text(text)

    def count_text(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class EndpointTokenizer:
    """The endpoint's own `/tokenize`, as vLLM and Ferry serve it."""

    exact = True

    def __init__(self, asker: Asker, model: str) -> None:
        self._asker = asker
        self._model = model

    def count(self, tree: Tree) -> int:
        if "prompt" in tree:
            return self._ask({"prompt": tree["prompt"]})
        return self._ask({key: tree[key] for key in ("messages", "tools") if key in tree})

    def count_text(self, text: str) -> int:
        return self._ask({"prompt": text, "add_special_tokens": False})

    def _ask(self, question: dict[str, Any]) -> int:
        answer = self._asker.ask("POST", "/tokenize", {"model": self._model, **question})
        count = answer.get("count") if isinstance(answer, dict) else None
        if not isinstance(count, int):
            raise LoadTestError(f"{self._asker.where}/tokenize gave no count")
        return count


@contextlib.contextmanager
def tokenizer_of(name: str, target: Target, model: str) -> Iterator[tuple[Tokenizer, str]]:
    """The tokenizer that `--tokenizer` names, and what the user should know of it.

    Empty: words. "endpoint": the endpoint's. Else a folder or a name in transformers' cache and, where this machine has
    none, the endpoint's. Raises LoadTestError if there is none at all.
    """
    if not name:
        yield WordCounter(), "prompts are counted in words: give a --tokenizer for exact tokens"
        return
    why = ""
    if name != ENDPOINT:
        try:
            local = LocalTokenizer(name)
        except LoadTestError as error:
            why = str(error)
        else:
            yield local, ""
            return
    with contextlib.closing(Asker(target)) as asker:
        remote = EndpointTokenizer(asker, model)
        try:
            remote.count_text("time")
        except LoadTestError as error:
            raise LoadTestError(f"{why}; {error}" if why else str(error)) from error
        yield remote, f"{why}: the endpoint counts" if why else ""


def single_token_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[str, ...]:
    """Those words that are one token each wherever they stand. Raises LoadTestError if they are too few for texts."""
    if tokenizer.count_text(" ".join(words)) == len(words):
        return tuple(words)
    first = words[0]
    alone = tokenizer.count_text(f"{first} {first}")
    fitting = tuple(
        word
        for word in words
        if tokenizer.count_text(word) == 1 and tokenizer.count_text(f"{first} {word} {first}") == alone + 1
    )
    if len(fitting) < len(words) // 4:
        raise LoadTestError(
            f"only {len(fitting)} of {len(words)} common English words are one token in this vocabulary: prompts of "
            "exact lengths cannot be made"
        )
    return fitting
