"""Membership: a small table, and its laws over any sequence of changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
    ready = Membership().join(A).admit("a")
    assert ready.join(A) is ready
    assert ready.view(now_s=0.0).ready() == (A,)


def test_a_new_address_is_a_new_replica() -> None:
    ready = Membership().join(A).admit("a")
    moved = ready.join(replace(A, address="tcp://elsewhere:1"))
    assert [(r.address, r.state) for r in moved.replicas] == [("tcp://elsewhere:1", ReplicaState.STARTING)]
    assert moved.version == ready.version + 1


def test_changes_that_change_nothing() -> None:
    membership = Membership().join(A)
    assert membership.leave("b") is membership
    assert (
        membership.admit("b") is membership.drain("b") is membership.undrain("b") is membership.lose("b") is membership
    )
    assert membership.undrain("a") is membership
    ready = membership.admit("a")
    assert ready.admit("a") is ready


def test_a_deadline_is_a_change_and_ends_with_the_drain() -> None:
    ready = Membership().join(A).admit("a")
    drained = ready.drain("a")
    told = drained.drain("a", leaves_at_s=7.0)
    assert told.version == drained.version + 1 and told.view(now_s=3.0).replicas[0].leaves_at_s == 7.0
    assert told.drain("a", leaves_at_s=7.0) is told
    (back,) = told.undrain("a").replicas
    assert back == replace(A, state=ReplicaState.READY, leaves_at_s=None)


def test_a_drain_outlives_the_admission() -> None:
    drained = Membership().join(A).drain("a", leaves_at_s=7.0)
    (shown,) = drained.admit("a").replicas
    assert (shown.state, shown.leaves_at_s) == (ReplicaState.DRAINING, 7.0)


@pytest.mark.parametrize(("admitted", "state"), [(False, ReplicaState.STARTING), (True, ReplicaState.READY)])
def test_who_drains_no_more_is_what_it_was(admitted: bool, state: ReplicaState) -> None:
    drained = Membership().join(A).drain("a")
    back = (drained.admit("a") if admitted else drained).undrain("a")
    assert [r.state for r in back.replicas] == [state]
    assert [r.state for r in back.admit("a").replicas] == [ReplicaState.READY]


def test_who_is_lost_comes_back_draining_until_it_is_told_otherwise_or_leaves() -> None:
    lost = Membership().join(A).admit("a").drain("a", leaves_at_s=7.0).lose("a")
    assert lost.replicas == ()
    (back,) = lost.join(A).admit("a").replicas
    assert (back.state, back.leaves_at_s) == (ReplicaState.DRAINING, 7.0)
    for forgotten in (lost.undrain("a"), lost.leave("a"), lost.join(A).leave("a")):
        assert [r.state for r in forgotten.join(A).replicas] == [ReplicaState.STARTING]


def test_a_drain_that_only_the_replica_remembers_is_believed_once() -> None:
    says = replace(A, state=ReplicaState.DRAINING)
    drained = Membership().join(says)
    assert [r.state for r in drained.admit("a").replicas] == [ReplicaState.DRAINING]
    ready = drained.admit("a").undrain("a")
    assert ready.join(says) is ready, "what it said before it heard of the end"
    assert Membership().join(A).drain("a", leaves_at_s=7.0).lose("a").join(says).replicas[0].leaves_at_s == 7.0


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
    later = wished.join(B).admit("a").leave("b").stop_accepting().wish(wish("2"))
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
OTHERS = st.tuples(st.sampled_from(["admit", "drain", "undrain", "lose", "leave"]), NAMES, st.just(""))


@given(st.lists(st.one_of(JOIN, OTHERS)))
def test_states_follow_from_what_was_said_and_versions_rise_exactly_with_changes(
    changes: list[tuple[str, str, str]],
) -> None:
    membership = Membership()
    addresses: dict[str, str] = {}
    admitted: set[str] = set()
    drained: set[str] = set()
    for kind, name, what in changes:
        before = (dict(addresses), set(admitted), set(drained))
        if kind == "join":
            after = membership.join(replica(name, address=what))
            if addresses.get(name) != what:
                addresses[name] = what
                admitted.discard(name)
        else:
            after = getattr(membership, kind)(name)
            if kind in ("admit", "drain") and name in addresses:
                (admitted if kind == "admit" else drained).add(name)
            if kind in ("undrain", "leave"):
                drained.discard(name)
            if kind in ("lose", "leave"):
                addresses.pop(name, None)
                admitted.discard(name)
        states = {n: "draining" if n in drained else "ready" if n in admitted else "starting" for n in addresses}
        assert {r.replica_id: (r.address, str(r.state)) for r in after.replicas} == {
            n: (address, states[n]) for n, address in addresses.items()
        }
        changed = before != (addresses, admitted, drained)
        assert (after is not membership) == (after.version > membership.version) == changed
        membership = after
