"""Membership: a small table, and its laws over any sequence of changes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serving.pools.membership import MAX_WISHES, Membership
from serving.types import MoveWish, PoolRole, ReplicaState
from tests.fakes import replica

A, B = replica("a"), replica("b", PoolRole.PREFILL)


def test_a_replica_joins_as_starting_whatever_it_says() -> None:
    membership = Membership().join(A)
    assert A.state is ReplicaState.READY
    assert membership.replicas == (replace(A, state=ReplicaState.STARTING),)
    assert membership.version == 1 and membership.view(now_s=0.0).ready() == ()


def test_a_known_replica_keeps_its_state() -> None:
    ready = Membership().join(A).move_to("a", ReplicaState.READY)
    assert ready.join(A) is ready
    assert ready.view(now_s=0.0).ready() == (A,)


def test_a_new_address_is_a_new_replica() -> None:
    ready = Membership().join(A).move_to("a", ReplicaState.READY)
    moved = ready.join(replace(A, address="tcp://elsewhere:1"))
    assert [(r.address, r.state) for r in moved.replicas] == [("tcp://elsewhere:1", ReplicaState.STARTING)]
    assert moved.version == ready.version + 1


def test_changes_that_change_nothing() -> None:
    membership = Membership().join(A)
    assert membership.leave("b") is membership
    assert membership.move_to("b", ReplicaState.READY) is membership
    assert membership.move_to("a", ReplicaState.STARTING) is membership


def test_a_deadline_is_a_change_and_ends_with_the_drain() -> None:
    drained = Membership().join(A).move_to("a", ReplicaState.DRAINING)
    told = drained.move_to("a", ReplicaState.DRAINING, leaves_at_s=7.0)
    assert told.version == drained.version + 1 and told.view(now_s=3.0).replicas[0].leaves_at_s == 7.0
    assert told.move_to("a", ReplicaState.DRAINING, leaves_at_s=7.0) is told
    (back,) = told.move_to("a", ReplicaState.READY).replicas
    assert back == replace(A, state=ReplicaState.READY)


def test_who_left_is_forgotten_and_may_come_back() -> None:
    membership = Membership().join(A).join(B)
    left = membership.leave("a")
    assert left.get("a") is None and [r.replica_id for r in left.replicas] == ["b"]
    assert left.join(A).get("a") == replace(A, state=ReplicaState.STARTING)


def test_replicas_are_shown_by_pool_and_id() -> None:
    membership = Membership()
    for name, role in (("z", PoolRole.DECODE), ("c", PoolRole.PREFILL), ("a", PoolRole.DECODE)):
        membership = membership.join(replica(name, role))
    assert [r.replica_id for r in membership.view(now_s=0.0).replicas] == ["a", "z", "c"]


def wish(name: str) -> MoveWish:
    return MoveWish(wish_id=name, request_id="r")


def test_a_wish_is_a_change_and_stays_while_others_happen() -> None:
    membership = Membership().join(A)
    wished = membership.wish(wish("1"))
    assert wished.version == membership.version + 1 and wished.view(now_s=0.0).wishes == (wish("1"),)
    assert wished.wish(wish("1")) is wished, "one that is known changes nothing"
    later = wished.join(B).move_to("a", ReplicaState.READY).leave("b").stop_accepting().wish(wish("2"))
    assert later.view(now_s=0.0).wishes == (wish("1"), wish("2"))
    assert later.view(now_s=0.0).version == later.version == wished.version + 5
    assert [r.replica_id for r in later.replicas] == ["a"] and not later.accepting


def test_the_oldest_wishes_make_room() -> None:
    membership = Membership()
    for number in range(MAX_WISHES + 3):
        membership = membership.wish(wish(str(number)))
    assert [w.wish_id for w in membership.wishes] == [str(number) for number in range(3, MAX_WISHES + 3)]
    assert membership.version == MAX_WISHES + 3


NAMES = st.sampled_from("abc")
JOIN = st.tuples(st.just("join"), NAMES, st.sampled_from(["tcp://x:1", "tcp://x:2"]))
MOVE = st.tuples(st.just("move"), NAMES, st.sampled_from(ReplicaState))
LEAVE = st.tuples(st.just("leave"), NAMES, st.just(""))


@given(st.lists(st.one_of(JOIN, MOVE, LEAVE)))
def test_versions_rise_exactly_with_changes(changes: list[tuple[str, str, str]]) -> None:
    membership = Membership()
    model: dict[str, tuple[str, str]] = {}
    for kind, name, what in changes:
        before = dict(model)
        if kind == "join":
            after = membership.join(replica(name, address=what))
            if model.get(name, ("", ""))[0] != what:
                model[name] = (what, ReplicaState.STARTING)
        elif kind == "move":
            after = membership.move_to(name, ReplicaState(what))
            if name in model:
                model[name] = (model[name][0], what)
        else:
            after = membership.leave(name)
            model.pop(name, None)
        assert {r.replica_id: (r.address, r.state) for r in after.replicas} == model
        assert len(after.replicas) == len(model)
        assert after.version == membership.version + (model != before)
        assert (after is membership) == (model == before)
        membership = after
