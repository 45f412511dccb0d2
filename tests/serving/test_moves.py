"""Live moves: a context leaves its engine at any token, by wish or because its replica drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serving.contexts.evacuation import LAST_CALL_S
from serving.contexts.mover import CUT_OVER_TIMEOUT_S
from serving.contexts.pool_client import PoolClient
from serving.engine.messages import HandOff
from serving.types import ClusterView, MoveReason, ReplicaState
from tests.fakes import replica, until
from tests.serving.fleet import LONG, SHORT, Fleet

TOKENS = 12


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    yield fleet
    await fleet.close()


async def started(fleet: Fleet, *names: str, tokens_before: int = 4) -> str:
    """Two decode engines that generate only as allowed, and a context that has some tokens; returns where it runs."""
    await fleet.start(*names)
    for name in names:
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=SHORT, max_tokens=TOKENS)
    await until(lambda: any(fleet[name].adds for name in names))
    where = next(name for name in names if fleet[name].adds)
    fleet[where].allow(tokens_before)
    await until(lambda: len(fleet.tokens["r"]) == tokens_before)
    return where


def release_all(fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        engine.allow(10 * TOKENS)


def view_with(fleet: Fleet, name: str, state: ReplicaState, *, leaves_at_s: float | None = None) -> ClusterView:
    """What a controller shows whose clock says 500 s."""
    changed = replace(fleet[name].replica, state=state, leaves_at_s=leaves_at_s)
    replicas = (changed if e.name == name else e.replica for e in fleet.engines.values())
    return ClusterView(version=99, now_s=500.0, replicas=tuple(replicas))


@pytest.mark.parametrize("tokens_before", [0, 1, 5, TOKENS - 2])
async def test_a_move_with_kv_is_unbroken(fleet: Fleet, tokens_before: int) -> None:
    source = await started(fleet, "d1", "d2", tokens_before=tokens_before)
    answer = await fleet.client.move("r", reason=MoveReason.REBALANCE)
    assert answer is HandOff.AT_NEXT_TOKEN
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    destination = "d2" if source == "d1" else "d1"
    (leg,) = fleet[destination].adds
    assert leg.kv is not None and len(leg.leg["output_token_ids"]) == tokens_before + 1
    assert not fleet.held and fleet.metric("moves_total", reason="rebalance", mode="kv") == 1


async def test_a_move_by_replay_leaves_at_once(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    assert await fleet.client.move("r", reason=MoveReason.REBALANCE, carry_kv=False) is HandOff.NO_KV
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet[source].aborts == ["r#1"]
    assert fleet.metric("moves_total", reason="rebalance", mode="replay") == 1
    assert fleet.metric("recomputed_tokens_total") == SHORT + 4


async def test_where_the_engine_has_no_kv_the_log_is_replayed(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    fleet[source].without_kv = True
    assert await fleet.client.move("r", reason=MoveReason.DRAIN) is HandOff.NO_KV
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)


async def test_there_and_back_again_before_any_token_comes_from_there(fleet: Fleet) -> None:
    here = await started(fleet, "d1", "d2")
    for _ in range(3):
        there = "d2" if here == "d1" else "d1"
        legs = len(fleet[there].adds)
        moved = asyncio.wait_for(fleet.client.move("r", reason=MoveReason.REBALANCE), CUT_OVER_TIMEOUT_S / 2)
        assert await moved is HandOff.AT_NEXT_TOKEN, "it does not wait for its own arrival"
        fleet[here].allow(1)
        await until(lambda engine=fleet[there], legs=legs: len(engine.adds) == legs + 1)
        here = there
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)


async def test_the_wished_destination_is_taken(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2", "d3", "d4")
    wish = next(name for name in ("d4", "d3") if name != source)
    await fleet.client.move("r", reason=MoveReason.REBALANCE, destination=wish)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert len(fleet[wish].adds) == 1


async def test_a_wish_to_be_where_it_is_changes_nothing(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    assert await fleet.client.move("r", reason=MoveReason.REBALANCE, destination=source) is HandOff.GONE
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert len(fleet[source].adds) == 1 and not fleet[source].calls


@pytest.mark.parametrize("carry_kv", [True, False])
async def test_a_wish_for_an_engine_that_does_not_decode_comes_back(fleet: Fleet, carry_kv: bool) -> None:
    await fleet.start("p1")
    fleet["p1"].pace()
    await started(fleet, "d1")
    await fleet.client.move("r", reason=MoveReason.REBALANCE, destination="p1", carry_kv=carry_kv)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    _, back = fleet["d1"].adds
    assert back.kv is None, "NIXL cannot pull from itself"
    await until(lambda: not fleet.held)


async def test_the_last_token_ends_the_context_instead(fleet: Fleet) -> None:
    await started(fleet, "d1", "d2", tokens_before=TOKENS - 1)
    assert await fleet.client.move("r", reason=MoveReason.REBALANCE) is HandOff.ENDING
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert await fleet.client.move("r", reason=MoveReason.REBALANCE) is HandOff.GONE


async def test_two_wishes_at_once_are_one_move(fleet: Fleet) -> None:
    await started(fleet, "d1", "d2")
    first = await fleet.client.move("r", reason=MoveReason.REBALANCE)
    second = await fleet.client.move("r", reason=MoveReason.DRAIN)
    assert (first, second) == (HandOff.AT_NEXT_TOKEN, HandOff.GONE)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="rebalance", mode="kv") == 1


async def test_the_destination_dies_during_the_move(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2", "d3")
    doomed = next(name for name in ("d1", "d2", "d3") if name != source)
    await fleet.client.move("r", reason=MoveReason.REBALANCE, destination=doomed)
    fleet[source].allow(1)
    await until(lambda: fleet[doomed].adds)
    await fleet.kill(doomed)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1


async def test_a_draining_replica_is_emptied(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING))
    await until(lambda: any(method == "hand_off" for method, _ in fleet[source].calls))
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="drain", mode="kv") == 1


async def test_a_drain_without_anywhere_to_go_lets_contexts_finish(fleet: Fleet) -> None:
    source = await started(fleet, "d1")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING))
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert not any(method == "hand_off" for method, _ in fleet[source].calls)


async def test_where_nothing_else_decodes_a_drain_goes_to_a_prefill_engine(fleet: Fleet) -> None:
    source = await started(fleet, "d1")
    await fleet.start("p1")
    fleet["p1"].pace()
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING))
    await handed_off(fleet, source)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet["p1"].adds[0].kv is not None and fleet.metric("moves_total", reason="drain", mode="kv") == 1


async def handed_off(fleet: Fleet, source: str) -> None:
    await until(lambda: any(method == "hand_off" for method, _ in fleet[source].calls))


async def test_what_is_left_shortly_before_a_replica_leaves_starts_anew_elsewhere(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING, leaves_at_s=500.0 + LAST_CALL_S + 1.0))
    await handed_off(fleet, source)
    assert fleet.metric("moves_total", reason="drain", mode="replay") == 0, "it may still get to its next token"
    await until(lambda: fleet[source].aborts)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="drain", mode="replay") == 1
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 0


@pytest.mark.slow
async def test_the_last_call_of_a_drain_that_is_called_off_is_too(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING, leaves_at_s=500.0 + LAST_CALL_S + 1.0))
    await handed_off(fleet, source)
    await fleet.show()
    await asyncio.sleep(1.2)
    assert not fleet[source].aborts
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="drain", mode="replay") == 0


@pytest.mark.parametrize("later", [600.0, None])
async def test_a_later_deadline_or_none_takes_the_place_of_an_earlier_one(fleet: Fleet, later: float | None) -> None:
    source = await started(fleet, "d1", "d2")
    for leaves_at_s in (500.0 + LAST_CALL_S + 1.0, later, later):
        await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING, leaves_at_s=leaves_at_s))
    await asyncio.sleep(1.2)
    assert not fleet[source].aborts
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)


async def test_without_anywhere_to_go_contexts_stay_past_the_last_call(fleet: Fleet) -> None:
    source = await started(fleet, "d1")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING, leaves_at_s=500.0))
    await asyncio.sleep(0.1)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert not fleet[source].aborts


async def test_contexts_are_listed_with_where_they_run(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    client: PoolClient = fleet.client
    (shown,) = client.contexts()
    assert shown == {"context": "r", "replica": source, "leg": 1, "prompt_tokens": SHORT, "output_tokens": 4}


async def leave_during_the_pull(fleet: Fleet) -> str:
    """A drained replica leaves while its destination has the blocks but not answered yet; returns the destination."""
    source = await started(fleet, "d1", "d2")
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING))
    await until(lambda: any(method == "hand_off" for method, _ in fleet[source].calls))
    fleet[source].allow(1)
    destination = "d2" if source == "d1" else "d1"
    await until(lambda: fleet[destination].adds)
    await fleet.kill(source)
    return destination


async def test_a_drained_replica_may_leave_as_soon_as_its_blocks_are_pulled(fleet: Fleet) -> None:
    await leave_during_the_pull(fleet)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 0


@pytest.mark.slow
async def test_a_pull_that_a_leaving_replica_left_unfinished_is_replayed(fleet: Fleet) -> None:
    destination = await leave_during_the_pull(fleet)
    await until(lambda: fleet[destination].aborts)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1


async def test_a_caller_that_leaves_does_not_take_the_move_along(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    fleet[source].without_kv = True
    fleet[source].answering.clear()
    moving = asyncio.create_task(fleet.client.move("r", reason=MoveReason.REBALANCE, precopy=False))
    await handed_off(fleet, source)
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)
    assert moving.cancelled()
    fleet[source].answering.set()
    destination = "d2" if source == "d1" else "d1"
    await until(lambda: fleet[destination].adds)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="rebalance", mode="replay") == 1


async def test_a_replica_that_cannot_be_reached_holds_up_no_drain(fleet: Fleet) -> None:
    source = await started(fleet, "d1", "d2")
    view = view_with(fleet, source, ReplicaState.DRAINING, leaves_at_s=500.0 + LAST_CALL_S + 30.0)
    nobody = replica("nobody", address="tcp://127.0.0.1:1")
    await asyncio.wait_for(fleet.client.follow(replace(view, replicas=(*view.replicas, nobody))), 1.0)
    await handed_off(fleet, source)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)


async def waiting_on_prefill(fleet: Fleet) -> tuple[str, str]:
    """A long prompt that waits on a prefill engine, without a token or KV; returns which, and the other one."""
    await fleet.start("p1", "p2", "d1", "d2")
    for engine in fleet.engines.values():
        engine.pace()
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=TOKENS)
    await until(lambda: fleet["p1"].adds or fleet["p2"].adds)
    source, other = ("p1", "p2") if fleet["p1"].adds else ("p2", "p1")
    fleet[source].without_kv = True
    return source, other


async def test_a_prompt_that_waits_on_a_draining_prefill_engine_goes_to_another(fleet: Fleet) -> None:
    source, other = await waiting_on_prefill(fleet)
    await fleet.client.follow(view_with(fleet, source, ReplicaState.DRAINING))
    await until(lambda: fleet[source].aborts)
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert [a.leg["handoff_at_tokens"] for a in fleet[other].adds] == [1]


async def test_a_prompt_that_waits_goes_where_it_is_wished(fleet: Fleet) -> None:
    _, other = await waiting_on_prefill(fleet)
    await fleet.client.move("r", reason=MoveReason.REBALANCE, destination="d2")
    release_all(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet[other].adds == [] and [a.leg["output_token_ids"] for a in fleet["d2"].adds] == [[]]
