"""From asks to jobs: prompts of exactly the wanted tokens, as the served model's tokenizer counts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.asks import Ask
from loadtest.jobs import as_body, body_tree
from loadtest.texts import WORDS, cut_to, key_of, text_of
from loadtest.tokenizers import Tokenizer, single_token_words
from loadtest.types import Job, LoadTestError

# Words at a seam may be joined in a vocabulary of another kind: then a word more or less makes the count right.
TRIES = 4
# So many tokens are counted prompt by prompt; of a longer load every CHECK_EVERY-th prompt. The server counts them all.
COUNTED_TOKENS = 3_000_000
CHECK_EVERY = 50


@dataclass(frozen=True, slots=True)
class Form:
    """What all requests of a load have alike."""

    endpoint: str
    model: str
    stream: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the body: tools, response_format, and whatever the server knows."""
    tenant_header: str = ""
    class_header: str = ""


class Prompts:
    """Makes jobs; `notes` says afterwards what the user should know of them."""

    def __init__(self, form: Form, tokenizer: Tokenizer, seed: int) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._seed = seed
        self._words = single_token_words(tokenizer, WORDS)
        # By the chat template, the tools and the special tokens; the same for every prompt.
        self._added_tokens = tokenizer.count(self._tree(Ask(0, 0, None, 1, 1), self._words[0])) - 1
        self._counted_tokens = 0
        self._too_short = 0

    def jobs(self, asks: Iterable[Ask]) -> list[Job]:
        """Raises LoadTestError where a length cannot be had."""
        return [self._job(number, ask) for number, ask in enumerate(asks)]

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._too_short:
            return ()
        return (
            f"{self._too_short} prompts are longer than was asked for: the chat template and tools alone take "
            f"{self._added_tokens} tokens",
        )

    def _job(self, number: int, ask: Ask) -> Job:
        tree, prompt_tokens = self._given(ask) if ask.text else self._made(number, ask)
        form = self._form
        headers = ((form.tenant_header, ask.tenant), (form.class_header, ask.slo_class))
        return Job(
            number=number,
            body=as_body(tree),
            session=ask.session,
            turn=ask.turn,
            due_s=ask.due_s,
            think_s=ask.think_s,
            slo_class=ask.slo_class,
            headers=tuple((name, value) for name, value in headers if name and value),
            continues=ask.continues,
            prompt_tokens=prompt_tokens if self._tokenizer.exact and not ask.continues else None,
        )

    def _given(self, ask: Ask) -> tuple[dict[str, Any], int]:
        tree = self._tree(ask, ask.text)
        return tree, 0 if ask.continues else self._tokenizer.count(tree)

    def _made(self, number: int, ask: Ask) -> tuple[dict[str, Any], int]:
        """A prompt of the wanted length, and its length."""
        if ask.continues:
            return self._tree(ask, self._text(ask, ask.input_tokens)), ask.input_tokens
        wanted = max(ask.input_tokens, self._added_tokens + 1)
        self._too_short += wanted > ask.input_tokens
        own_tokens = wanted - self._added_tokens
        for _ in range(TRIES):
            tree = self._tree(ask, self._text(ask, own_tokens))
            if self._counted_tokens > COUNTED_TOKENS and number % CHECK_EVERY:
                return tree, wanted
            counted = self._tokenizer.count(tree)
            self._counted_tokens += counted
            if counted == wanted:
                return tree, wanted
            own_tokens = max(1, own_tokens + wanted - counted)
        raise LoadTestError(f"no prompt of {wanted} tokens can be made: the tokenizer counts {counted}")

    def _text(self, ask: Ask, tokens: int) -> str:
        own_key = key_of(self._seed, "own", ask.session, ask.turn)
        return text_of(cut_to(ask.prefix, tokens, own_key), self._words)

    def _tree(self, ask: Ask, text: str) -> dict[str, Any]:
        form = self._form
        return body_tree(
            form.endpoint,
            ask.model or form.model,
            text,
            ask.output_tokens,
            form.extra,
            stream=form.stream,
            system=ask.system,
        )
