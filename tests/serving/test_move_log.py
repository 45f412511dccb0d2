"""The log of a request's moves, as the pool client keeps it: why, how, after which token, and how long it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serving.contexts.move_log import MoveLog, MoveRecord, wanted_log
from serving.types import ClusterView, MoveReason, ReplicaState
from tests.fakes import FakeClock, settle, until
from tests.serving.fleet import LONG, SHORT, Fleet

TOKENS = 12


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(clock=FakeClock())
    yield fleet
    await fleet.close()


async def ask_with_log(fleet: Fleet, *request_ids: str, prompt_tokens: int = SHORT) -> MoveLog:
    """Contexts of one HTTP request whose client wants to hear of moves."""
    log = MoveLog()
    token = wanted_log.set(log)
    for request_id in request_ids:
        await fleet.ask(request_id, prompt_tokens=prompt_tokens, max_tokens=TOKENS)
    wanted_log.reset(token)
    return log


async def paced(fleet: Fleet, *names: str) -> None:
    await fleet.start(*names)
    for name in names:
        fleet[name].pace()


async def steps(fleet: Fleet, name: str, count: int, request_id: str = "r") -> None:
    """Let an engine make tokens, and wait until they are delivered."""
    before = len(fleet.tokens[request_id])
    fleet[name].allow(count)
    await until(lambda: len(fleet.tokens[request_id]) == before + count)


async def home_of(fleet: Fleet, request_id: str = "r") -> str:
    """The engine that runs the context."""

    def found() -> str | None:
        shown = next(c for c in fleet.client.contexts() if c["context"] == request_id)
        name = shown["replica"]
        running = name is not None and any(leg.startswith(f"{request_id}#") for leg in fleet[name].running)
        return name if running else None

    await until(found)
    name = found()
    assert name is not None
    return name


def other(name: str) -> str:
    return "d2" if name == "d1" else "d1"


async def finish(fleet: Fleet, *request_ids: str) -> None:
    for engine in fleet.engines.values():
        engine.allow(10 * TOKENS)
    for request_id in request_ids:
        await fleet.expect_exact(request_id, TOKENS)


async def advance(fleet: Fleet, duration_s: float) -> None:
    assert isinstance(fleet.clock, FakeClock)
    await fleet.clock.advance(duration_s)


async def test_a_drain_is_told_with_its_token_and_its_gap(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2")
    log = await ask_with_log(fleet, "r")
    source = await home_of(fleet)
    await steps(fleet, source, 4)
    draining = (
        replace(e.replica, state=ReplicaState.DRAINING if e.name == source else e.replica.state)
        for e in fleet.engines.values()
    )
    await fleet.client.follow(ClusterView(version=99, replicas=tuple(draining)))
    await until(lambda: any(method == "hand_off" for method, _ in fleet[source].calls))
    await advance(fleet, 0.5)
    await steps(fleet, source, 1)
    assert await home_of(fleet) == other(source)
    await advance(fleet, 0.25)
    assert log.completed == [], "a move is over with the first token after it"
    await steps(fleet, other(source), 1)
    (move,) = log.completed
    assert (move.reason, move.mode, move.at_token, move.recomputed_tokens) == ("drain", "kv", 5, 0)
    assert move.gap_s == pytest.approx(0.25)
    await advance(fleet, 0.1)
    await finish(fleet, "r")
    assert log.completed == [move], "later tokens add nothing"


async def test_the_hop_from_prefill_to_decode_is_a_move_as_every_other(fleet: Fleet) -> None:
    await paced(fleet, "p1", "d1")
    log = await ask_with_log(fleet, "r", prompt_tokens=LONG)
    await steps(fleet, "p1", 1)
    await advance(fleet, 0.03)
    await finish(fleet, "r")
    (move,) = log.completed
    assert move == MoveRecord(
        reason="prefill_done", mode="kv", at_token=1, recomputed_tokens=0, gap_s=pytest.approx(0.03)
    )


async def test_a_replay_tells_what_is_computed_again(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2")
    log = await ask_with_log(fleet, "r")
    source = await home_of(fleet)
    await steps(fleet, source, 3)
    await fleet.client.move("r", reason=MoveReason.REBALANCE, carry_kv=False)
    await finish(fleet, "r")
    (move,) = log.completed
    assert (move.reason, move.mode, move.at_token, move.recomputed_tokens) == ("rebalance", "replay", 3, SHORT + 3)


async def test_a_loss_before_the_first_token_counts_from_the_arrival(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2")
    log = await ask_with_log(fleet, "r")
    source = await home_of(fleet)
    await advance(fleet, 2.0)
    await fleet.kill(source)
    await advance(fleet, 1.0)
    await finish(fleet, "r")
    (move,) = log.completed
    assert (move.reason, move.mode, move.at_token, move.recomputed_tokens) == ("engine_lost", "replay", 0, SHORT)
    assert move.gap_s == pytest.approx(3.0)


async def test_two_moves_without_a_token_between_them_share_their_gap(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2", "d3")
    log = await ask_with_log(fleet, "r")
    source = await home_of(fleet)
    await steps(fleet, source, 2)
    await fleet.client.move("r", reason=MoveReason.REBALANCE)
    await steps(fleet, source, 1)
    doomed = await home_of(fleet)
    await advance(fleet, 0.5)
    await fleet.kill(doomed)
    await finish(fleet, "r")
    assert [(m.reason, m.mode, m.at_token) for m in log.completed] == [
        ("rebalance", "kv", 3),
        ("engine_lost", "replay", 3),
    ]
    assert [m.gap_s for m in log.completed] == [pytest.approx(0.5)] * 2


async def test_the_contexts_of_one_request_share_its_log_and_others_have_none(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2")
    log = await ask_with_log(fleet, "0_r", "1_r")
    other_log = await ask_with_log(fleet, "s")
    await fleet.ask("t", prompt_tokens=SHORT, max_tokens=TOKENS)
    names = ["0_r", "1_r", "s", "t"]
    await asyncio.gather(*(home_of(fleet, name) for name in names))
    for name in ("1_r", "0_r", "t"):
        await fleet.client.move(name, reason=MoveReason.REBALANCE, carry_kv=False)
    await finish(fleet, *names)
    assert [move.at_token for move in log.completed] == [0, 0] and other_log.completed == []
    assert fleet.metric("moves_total", reason="rebalance", mode="replay") == 3


async def test_a_move_that_no_token_follows_is_not_told(fleet: Fleet) -> None:
    await paced(fleet, "d1", "d2")
    log = await ask_with_log(fleet, "r")
    source = await home_of(fleet)
    await steps(fleet, source, 2)
    await fleet.client.move("r", reason=MoveReason.REBALANCE, carry_kv=False)
    assert await home_of(fleet) == other(source)
    await fleet.client.abort_requests_async(["r"])
    await settle()
    assert log.completed == []
    assert fleet.metric("moves_total", reason="rebalance", mode="replay") == 1


async def test_a_handoff_whose_kv_is_not_pulled_is_told_as_the_replay_that_it_is(fleet: Fleet) -> None:
    await paced(fleet, "d1")
    log = await ask_with_log(fleet, "r")
    assert await home_of(fleet) == "d1"
    await steps(fleet, "d1", 4)
    await fleet.client.move("r", reason=MoveReason.REBALANCE)  # there is nowhere else: it comes back
    await finish(fleet, "r")
    (move,) = log.completed
    assert (move.reason, move.mode, move.at_token, move.recomputed_tokens) == ("rebalance", "replay", 5, SHORT + 5)
    assert fleet.metric("moves_total", reason="rebalance", mode="replay") == 1
    assert fleet.metric("moves_total", reason="rebalance", mode="kv") == 0
    assert fleet.metric("recomputed_tokens_total") == SHORT + 5
