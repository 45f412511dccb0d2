"""Prompts of exact lengths: the same bytes each time, equal tokens for equal blocks, counted by a real tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.asks import Ask, mixed, parse_mix
from loadtest.load import load_for, make_load
from loadtest.prompts import Form, Prompts
from loadtest.texts import WORDS, Segment, cut_to, key_of, text_of
from loadtest.tokenizers import LocalTokenizer, WordCounter, single_token_words, tokenizer_of
from loadtest.types import LoadTestError, Target
from tests.loadtest.model_server import TEMPLATE_TOKENS, count, says, serving
from tests.loadtest.plans import CHAT, PLAN

TEMPLATE = (
    "{% if tools %}tools {{ tools | length }} {% endif %}{% for message in messages %}<|begin|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
segments = st.lists(st.builds(Segment, st.integers(0, 2**64 - 1), st.integers(0, 40)), max_size=5)


@given(segments, st.integers(0, 120))
def test_a_text_is_cut_and_filled_to_its_length_and_begins_like_its_segments(some: list[Segment], tokens: int) -> None:
    words = text_of(cut_to(some, tokens, 7)).split()
    assert len(words) == tokens and set(words) <= set(WORDS)
    whole = text_of(some).split()
    assert words[: len(whole)] == whole[:tokens]


def test_texts_are_the_same_on_every_machine() -> None:
    """Pins the bytes."""
    assert text_of([Segment(key_of(3, "prefix", 0), 6)]) == "child problem point water month month"
    assert text_of([Segment(1, 50)]) != text_of([Segment(2, 50)])
    assert key_of("a", "b") != key_of("ab") != key_of("b", "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as GPT-2 has it, trained on the words, with a chat template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # "friend" never stands alone: its first token differs, so it is no word of texts.
    tokenizer.train_from_iterator([" ".join(WORDS), *(word for word in WORDS[:-1])] * 20, trainer)
    made = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, eos_token="<|end|>").save_pretrained(
        made
    )
    return made


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalTokenizer:
    return LocalTokenizer(str(folder))


def test_words_of_texts_are_one_token_wherever_they_stand(local: LocalTokenizer) -> None:
    words = single_token_words(local, (*WORDS, "zyxwvu"))
    assert set(words) <= set(WORDS) and len(words) > 50
    assert local.count_text(" ".join(words)) == len(words)
    assert all(local.count_text(word) == 1 for word in words)


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions"])
def test_prompts_have_their_length_by_the_tokenizer(local: LocalTokenizer, endpoint: str) -> None:
    plan = replace(PLAN, endpoint=endpoint, input_words=60, range_ratio=0.5, requests=40, extra={"tools": [{}, {}]})
    jobs = make_load(plan, local).jobs
    lengths = [local.count(json.loads(job.body)) for job in jobs]
    assert lengths == [job.prompt_tokens for job in jobs]
    assert min(lengths) >= 30 and max(lengths) <= 90 and len(set(lengths)) > 10
    assert jobs == make_load(plan, local).jobs


def test_equal_blocks_are_equal_tokens(local: LocalTokenizer) -> None:
    form = Form("/v1/completions", "m")
    first, second, third = (
        Ask(session=n, turn=0, due_s=None, input_tokens=50, output_tokens=1, prefix=tuple(Segment(k, 16) for k in keys))
        for n, keys in enumerate([(1, 2, 3, 4), (1, 2, 9, 4), (5, 2, 3, 4)])
    )
    jobs = Prompts(form, local, seed=1).jobs([first, second, third])
    ids = [local._tokenizer(json.loads(job.body)["prompt"])["input_ids"] for job in jobs]
    assert [len(one) for one in ids] == [50, 50, 50]
    assert ids[0][:32] == ids[1][:32] and ids[0][32:40] != ids[1][32:40] and ids[0][:16] != ids[2][:16]


class Joining(WordCounter):
    """Takes one token less for each pair of words `time time`, as a vocabulary with joined words might."""

    exact = True

    def count_text(self, text: str) -> int:
        return len(text.replace("time year", "x").split())


class Contrary(WordCounter):
    """Counts a prompt of 20 words as 21, and one of 19 as 19."""

    exact = True

    def count(self, tree: Mapping[str, Any]) -> int:
        words = super().count(tree)
        return words + (words >= 20)


def test_a_miscounted_prompt_gets_another_word_or_is_refused() -> None:
    plan = replace(PLAN, input_words=2000, requests=3)
    jobs = make_load(plan, Joining()).jobs
    assert [Joining().count(json.loads(job.body)) for job in jobs] == [2000] * 3
    with pytest.raises(LoadTestError, match="no prompt of 20 tokens can be made"):
        make_load(replace(PLAN, input_words=20), Contrary())


def test_a_template_longer_than_the_prompt_is_told(local: LocalTokenizer) -> None:
    load = make_load(replace(PLAN, input_words=1), local)
    assert load.notes[-1].startswith("20 prompts are longer than was asked for")
    assert len({job.prompt_tokens for job in load.jobs}) == 1


def test_the_endpoint_counts_where_no_tokenizer_is_here() -> None:
    plan = replace(PLAN, tokenizer="no/such-model", input_words=40, extra={"tools": [{}]})
    with serving(says("a")) as server:
        load = load_for(plan, Target(server.base_url))
    assert load.notes[0].startswith("no tokenizer no/such-model is on this machine")
    assert [count(json.loads(job.body)) for job in load.jobs] == [40] * 20
    assert len(json.loads(load.jobs[0].body)["messages"][0]["content"].split()) == 40 - TEMPLATE_TOKENS - 11


def test_without_any_tokenizer_it_is_refused_and_without_the_wish_it_is_told() -> None:
    nobody = Target("http://127.0.0.1:9")
    with (
        pytest.raises(LoadTestError, match=r"cannot reach 127.0.0.1:9/tokenize"),
        tokenizer_of("endpoint", nobody, "m"),
    ):
        pass
    with pytest.raises(LoadTestError, match="no tokenizer nope is on this machine"), tokenizer_of("nope", nobody, "m"):
        pass
    load = load_for(PLAN, nobody)
    assert "counted in words" in load.notes[0] and load.jobs[0].prompt_tokens is None


def test_mixes_are_by_weight_and_whole_conversations() -> None:
    asks = [Ask(session, turn, None, 1, 1) for session in range(3000) for turn in range(2)]
    found = mixed(asks, parse_mix("--model-mix", ["a=3", "b"]), parse_mix("--tenant", ["x"]), seed=5)
    assert sum(one.model == "a" for one in found) / len(found) == pytest.approx(0.75, abs=0.04)
    assert all(first.model == second.model for first, second in zip(found[::2], found[1::2], strict=True))
    assert {one.tenant for one in found} == {"x"}
    for odd in ("a=0", "=1", "a=b", "a=inf", ""):
        with pytest.raises(LoadTestError, match="NAME=WEIGHT"):
            parse_mix("--tenant", [odd])
