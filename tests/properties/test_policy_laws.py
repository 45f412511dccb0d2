"""Laws of the router, over all candidates there could be."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serving.router.policy import Candidate, Route, choose_decode, choose_first
from serving.types import PoolRole

SMALL = st.integers(0, 5)
CANDIDATE = st.builds(
    Candidate,
    replica_id=st.text("abc", min_size=1, max_size=3),
    role=st.sampled_from(PoolRole),
    outstanding_prefill_tokens=SMALL | st.integers(0, 10_000),
    batch=SMALL,
    free_kv_blocks=st.integers(-3, 12),
    block_size_tokens=st.sampled_from([1, 16]),
    max_num_seqs=st.integers(1, 4),
)
CANDIDATES = st.lists(CANDIDATE, max_size=6, unique_by=lambda c: c.replica_id)
TOKENS = st.integers(0, 150)
DECODES = (PoolRole.DECODE, PoolRole.MIXED)


def decoders_of(candidates: list[Candidate]) -> list[Candidate]:
    """By their role; where none has it, all."""
    return [c for c in candidates if c.role in DECODES] or candidates


def chosen(route: Route, candidates: list[Candidate]) -> Candidate:
    (found,) = (c for c in candidates if c.replica_id == route.replica_id)
    return found


@given(tokens=TOKENS, candidates=CANDIDATES)
def test_a_context_decodes_where_decoding_is_done(tokens: int, candidates: list[Candidate]) -> None:
    route = choose_decode(tokens, candidates)
    decoders = decoders_of(candidates)
    assert (route is None) == (not decoders)
    assert route is None or chosen(route, candidates) in decoders


@given(tokens=TOKENS, threshold=TOKENS, candidates=CANDIDATES)
def test_a_context_starts_in_the_right_role(tokens: int, threshold: int, candidates: list[Candidate]) -> None:
    route = choose_first(tokens, candidates, disaggregate_from_tokens=threshold)
    assert (route is None) == (not candidates)
    if route is None:
        return
    decoders = decoders_of(candidates)
    prefillers = [c for c in candidates if c not in decoders]
    assert route.hands_off == (bool(prefillers) and tokens >= threshold)
    assert chosen(route, candidates) in (prefillers if route.hands_off else decoders)


@given(tokens=TOKENS, candidates=CANDIDATES)
def test_one_that_fits_is_chosen_when_there_is_one(tokens: int, candidates: list[Candidate]) -> None:
    route = choose_decode(tokens, candidates)
    fits = {c.replica_id for c in decoders_of(candidates) if c.free_kv_blocks >= c.blocks_for(tokens)}
    assert not fits or (route is not None and route.replica_id in fits)


@given(
    tokens=TOKENS,
    threshold=TOKENS,
    candidates=CANDIDATES,
    data=st.data(),
    more=st.tuples(SMALL, SMALL, SMALL),
)
def test_more_load_makes_nobody_preferred(
    tokens: int, threshold: int, candidates: list[Candidate], data: st.DataObject, more: tuple[int, int, int]
) -> None:
    before = [
        choose_decode(tokens, candidates),
        choose_first(tokens, candidates, disaggregate_from_tokens=threshold),
    ]
    if not candidates:
        return
    at = data.draw(st.integers(0, len(candidates) - 1))
    busier = replace(
        candidates[at],
        outstanding_prefill_tokens=candidates[at].outstanding_prefill_tokens + more[0],
        batch=candidates[at].batch + more[1],
        free_kv_blocks=candidates[at].free_kv_blocks - more[2],
    )
    now = [*candidates[:at], busier, *candidates[at + 1 :]]
    after = [choose_decode(tokens, now), choose_first(tokens, now, disaggregate_from_tokens=threshold)]
    for old, new in zip(before, after, strict=True):
        if new is not None and new.replica_id == busier.replica_id:
            assert old is not None and old.replica_id == busier.replica_id


@given(tokens=TOKENS, candidates=CANDIDATES, data=st.data())
def test_the_order_of_candidates_does_not_matter(tokens: int, candidates: list[Candidate], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(candidates))
    assert choose_decode(tokens, shuffled) == choose_decode(tokens, candidates)
    first = choose_first(tokens, candidates, disaggregate_from_tokens=64)
    assert choose_first(tokens, shuffled, disaggregate_from_tokens=64) == first
