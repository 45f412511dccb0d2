"""Resuming a context: the leg in a request, its output, and the generator that stands where it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from serving.engine.messages import LEG_KEY, Leg
from serving.engine.resume import SeededDraws, leg_of, resume, resuming

SEEDS = st.integers(0, 2**63 - 1)


def draw(generator: torch.Generator) -> int:
    """A draw as vLLM's CPU sampler makes it for a seeded request."""
    return int(torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long).item())


def plain(seed: int, draws: int) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(seed)
    for _ in range(draws):
        draw(generator)
    return generator


def standing(seed: int, tokens: list[int]) -> SeededDraws:
    draws = SeededDraws(device="cpu")
    draws.stand_after(seed, tokens)
    return draws


@given(seed=SEEDS, count=st.integers(0, 40))
def test_after_k_tokens_it_stands_where_k_draws_lead(seed: int, count: int) -> None:
    resumed, whole = standing(seed, [0] * count), plain(seed, count)
    assert [draw(resumed) for _ in range(5)] == [draw(whole) for _ in range(5)]


@given(seed=SEEDS, before=st.integers(0, 10), delivered=st.integers(0, 10), discarded=st.integers(1, 4))
def test_a_rewind_forgets_draws_that_delivered_nothing(seed: int, before: int, delivered: int, discarded: int) -> None:
    tokens = [0] * before
    draws = standing(seed, tokens)
    for _ in range(delivered):
        draw(draws)
        tokens.append(0)
    for _ in range(discarded):
        draw(draws)
        draws.set_offset(draws.get_offset() - 4)
    assert draw(draws) == draw(plain(seed, before + delivered))


def test_it_is_a_generator_that_torch_takes() -> None:
    draws = standing(3, [])
    assert isinstance(draws, torch.Generator) and draws.get_offset() == 0
    assert torch.equal(torch.rand(4, generator=draws), torch.rand(4, generator=plain(3, 0)))


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}, {LEG_KEY: None}])
def test_a_request_without_a_leg(extra_args: dict[str, Any] | None) -> None:
    assert leg_of(SamplingParams(extra_args=extra_args)) is None


def test_the_leg_of_a_request() -> None:
    assert leg_of(None) is None
    leg = {"output_token_ids": [1], "handoff_at_tokens": 2, "max_model_len": 3}
    assert leg_of(SamplingParams(extra_args={LEG_KEY: leg})) == Leg(
        output_token_ids=[1], handoff_at_tokens=2, max_model_len=3
    )


def vllm_request(max_tokens: int = 10) -> Request:
    return Request("r", [5, 6], SamplingParams(max_tokens=max_tokens), None)


@pytest.mark.parametrize(
    ("handoff", "max_tokens", "expected"), [(None, 10, 10), (1, 10, 1), (10, 10, 10), (20, 10, 10)]
)
def test_a_handoff_only_shortens(handoff: int | None, max_tokens: int, expected: int) -> None:
    request = vllm_request(max_tokens)
    resume(request, Leg(output_token_ids=[], handoff_at_tokens=handoff))
    assert request.max_tokens == expected


def test_tokens_of_earlier_legs_are_output() -> None:
    request, tokens = vllm_request(), [1, 2, 3]
    resume(request, Leg(output_token_ids=tokens))
    assert list(request.output_token_ids) == [1, 2, 3]
    assert list(request.all_token_ids) == [5, 6, 1, 2, 3]
    assert (request.num_prompt_tokens, request.prefill_stats) == (2, None)
    request.append_output_token_ids(4)
    assert tokens == [1, 2, 3], "the leg is left as it was"


class Grammar:
    """Accepts these tokens in this order, as a grammar of vLLM's backends does."""

    def __init__(self, *accepts: int) -> None:
        self.left = list(accepts)

    def accept_tokens(self, request_id: str, token_ids: list[int]) -> bool:
        expected, self.left = self.left[: len(token_ids)], self.left[len(token_ids) :]
        return token_ids == expected


class Tokenizer:
    def get_vocab(self) -> dict[str, int]:
        return {"<think>": 1, "</think>": 2}


class Waiting:
    """As much of vLLM's scheduler as looks after requests that wait for their grammar."""

    _handle_blocked_waiting_request = Scheduler._handle_blocked_waiting_request

    def __init__(self, *, thinks: bool = False) -> None:
        self.grammar_compile_error_reqs: set[str] = set()
        # Its constructor wants a whole configuration and a model.
        manager = self.structured_output_manager = StructuredOutputManager.__new__(StructuredOutputManager)
        manager.reasoner_cls = DeepSeekR1ReasoningParser if thinks else None
        manager.tokenizer, manager.enable_in_reasoning = Tokenizer(), False


def constrained(tokens: list[int], grammar: Grammar) -> Request:
    params = SamplingParams(max_tokens=10, structured_outputs=StructuredOutputsParams(regex="a+"))
    request = Request("r", [5, 1], params, None)
    resume(request, Leg(output_token_ids=tokens))
    assert request.structured_output_request is not None
    request.structured_output_request.grammar = grammar
    return request


@pytest.mark.parametrize(
    ("tokens", "thinks", "left"),
    [
        ([7, 8], False, [9]),
        ([], False, [7, 8, 9]),
        ([], True, [7, 8, 9]),
        ([3, 4], True, [7, 8, 9]),
        ([3, 4, 2], True, [7, 8, 9]),
        ([3, 4, 2, 7, 8], True, [9]),
        ([2, 7], True, [8, 9]),
    ],
)
def test_a_grammar_goes_on_where_the_tokens_of_earlier_legs_lead(
    tokens: list[int], thinks: bool, left: list[int]
) -> None:
    grammar = Grammar(7, 8, 9)
    scheduler, request = resuming(Waiting)(thinks=thinks), constrained(tokens, grammar)
    assert scheduler._handle_blocked_waiting_request(request)
    assert request.status == RequestStatus.WAITING and not scheduler.grammar_compile_error_reqs
    assert grammar.left == left


def test_a_request_whose_grammar_rejects_its_tokens_fails_alone() -> None:
    scheduler, request = resuming(Waiting)(), constrained([7, 9], Grammar(7, 8))
    for _ in range(2):  # vLLM may look again before it has ended the request
        assert not scheduler._handle_blocked_waiting_request(request)
        assert scheduler.grammar_compile_error_reqs == {"r"}
        assert request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
