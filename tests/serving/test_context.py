"""A Context by examples; its laws are in tests/properties."""

from __future__ import annotations

import pytest

from serving.contexts.context import Context, Verdict, request_id_of


def context() -> Context:
    return Context(request_id="r", num_prompt_tokens=10, max_tokens=5)


def test_a_context_moves_and_ends() -> None:
    c = context()
    first = c.begin_leg("p", handoff_at_tokens=1)
    assert c.accept(first, [1], ended=True, kv_kept=True) is Verdict.HANDS_OFF
    assert (c.replica_id, c.finished, c.num_tokens) == (None, False, 11)
    second = c.begin_leg("d", handoff_at_tokens=None)
    assert c.accept(second, [2, 3], ended=False, kv_kept=False) is Verdict.CONTINUES
    assert c.accept(second, [4], ended=True, kv_kept=False) is Verdict.FINISHED
    assert (c.output_token_ids, c.finished, c.replica_id) == ([1, 2, 3, 4], True, None)


def test_before_its_first_leg_a_context_takes_nothing() -> None:
    c = context()
    assert c.accept(c.leg_id, [1], ended=False, kv_kept=False) is Verdict.FENCED


def test_a_leg_that_ended_says_nothing_more() -> None:
    c = context()
    leg = c.begin_leg("p", handoff_at_tokens=1)
    c.accept(leg, [1], ended=True, kv_kept=True)
    assert c.accept(leg, [1], ended=True, kv_kept=True) is Verdict.FENCED
    assert c.output_token_ids == [1]


def test_an_abandoned_context_takes_nothing_and_begins_nothing() -> None:
    c = context()
    leg = c.begin_leg("d", handoff_at_tokens=None)
    c.abandon()
    assert c.accept(leg, [1], ended=False, kv_kept=False) is Verdict.FENCED
    with pytest.raises(AssertionError):
        c.begin_leg("d", handoff_at_tokens=None)


def test_a_handoff_lies_ahead() -> None:
    c = context()
    leg = c.begin_leg("d", handoff_at_tokens=None)
    c.accept(leg, [1, 2], ended=False, kv_kept=False)
    with pytest.raises(AssertionError):
        c.begin_leg("p", handoff_at_tokens=2)


@pytest.mark.parametrize("request_id", ["r", "a#b", "#", "cmpl-1-0"])
def test_leg_ids_name_their_request(request_id: str) -> None:
    c = Context(request_id=request_id, num_prompt_tokens=1, max_tokens=1)
    for _ in range(3):
        assert request_id_of(c.begin_leg("d", handoff_at_tokens=None)) == request_id


def test_an_id_without_a_mark_is_of_no_request() -> None:
    assert request_id_of("release-x") == ""
