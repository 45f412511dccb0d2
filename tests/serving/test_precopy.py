"""Copies ahead of a move: what they carry, when they stop, and that nothing they meet harms the context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contexts import mover, moves
from serving.contexts.move_log import MoveLog, wanted_log
from serving.contexts.mover import COPY_MARK
from serving.contexts.moves import (
    BOUNDARY_WAIT_S,
    FIRST_BLOCKS,
    MOST_GROWTH,
    PACED_BLOCKS,
    PATIENCE_STAGES,
    Stage,
    copies_on,
    full_tokens,
    stage_blocks,
    waits_for_boundary,
)
from serving.engine.messages import HandOff
from serving.types import ClusterView, MoveReason, ReplicaState
from tests.fakes import BLOCK_SIZE_TOKENS, KV_BLOCK_BYTES, until
from tests.serving.fleet import SHORT, Fleet

TOKENS = 200
LONG_PROMPT = 2 * FIRST_BLOCKS * BLOCK_SIZE_TOKENS + 5
FULL = SHORT // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    yield fleet
    await fleet.close()


async def started(fleet: Fleet, *names: str, before: int = 4) -> tuple[str, str]:
    """A context with some tokens on one of these engines; returns where it is and one where it is not."""
    await fleet.start(*names)
    for name in names:
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=SHORT, max_tokens=TOKENS)
    await until(lambda: any(fleet[name].adds for name in names))
    here = next(name for name in names if fleet[name].adds)
    fleet[here].allow(before)
    await until(lambda: len(fleet.tokens["r"]) == before)
    return here, next(name for name in names if name != here)


async def copied(fleet: Fleet, there: str) -> None:
    """The first copy to this engine is done, so that the move waits for what comes next."""
    await until(lambda: fleet[there].copies)
    await until(lambda: not any(COPY_MARK in leg for leg in fleet.client.engines[there].legs))


def finish(fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        engine.copying.set()
        engine.allow(2 * TOKENS)


async def move(fleet: Fleet, destination: str) -> HandOff:
    return await fleet.client.move("r", reason=MoveReason.DRAIN, destination=destination)


async def test_full_blocks_go_ahead_and_the_leg_follows(fleet: Fleet) -> None:
    _, there = await started(fleet, "d1", "d2")
    assert await move(fleet, there) is HandOff.AT_NEXT_TOKEN
    (copied,) = fleet[there].copies
    assert copied.kv is not None and copied.kv["remote_num_tokens"] == FULL + BLOCK_SIZE_TOKENS
    assert len(copied.request.prompt_token_ids or ()) == FULL + BLOCK_SIZE_TOKENS + 1
    assert fleet.metric("move_bytes_total") == 4 * KV_BLOCK_BYTES
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert not fleet.held and fleet.metric("moves_total", reason="drain", mode="kv") == 1
    assert fleet.metric("move_bytes_total") == 5 * KV_BLOCK_BYTES, "the cut-over carries the last of them"


async def test_blocks_that_fill_up_meanwhile_go_in_the_next_stage(fleet: Fleet) -> None:
    here, there = await started(fleet, "d1", "d2")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    fleet[here].allow(2 * BLOCK_SIZE_TOKENS)
    await until(lambda: len(fleet.tokens["r"]) == 4 + 2 * BLOCK_SIZE_TOKENS)
    fleet[there].copying.set()
    assert await moving is HandOff.AT_NEXT_TOKEN
    tokens = [copy.kv["remote_num_tokens"] for copy in fleet[there].copies if copy.kv]
    assert tokens == [64, 96], "the second stage has what filled up during the first"
    assert fleet.metric("move_bytes_total") == 6 * KV_BLOCK_BYTES
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert not fleet.held
    assert fleet.metric("move_bytes_total") == 7 * KV_BLOCK_BYTES


async def test_without_precopy_the_cut_over_carries_all(fleet: Fleet) -> None:
    _, there = await started(fleet, "d1", "d2")
    await fleet.client.move("r", reason=MoveReason.DRAIN, destination=there, precopy=False)
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet[there].copies == []


async def test_the_destination_dies_during_a_copy(fleet: Fleet) -> None:
    _, there = await started(fleet, "d1", "d2", "d3")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    await fleet.kill(there)
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN, "it goes elsewhere, all at the cut-over"
    before = fleet.metric("move_bytes_total")
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("move_bytes_total") == before + 5 * KV_BLOCK_BYTES
    await until(lambda: not fleet.held)
    assert fleet.metric("moves_total", reason="drain", mode="kv") == 1


async def test_the_core_of_the_destination_is_told_to_end_during_a_copy(fleet: Fleet) -> None:
    _, there = await started(fleet, "d1", "d2", "d3")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    await fleet[there].stop_core()
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet[there].adds == []
    await until(lambda: not fleet.held)


async def test_a_caller_that_leaves_during_a_copy_does_not_take_the_move_along(fleet: Fleet) -> None:
    here, there = await started(fleet, "d1", "d2")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)
    assert moving.cancelled()
    fleet[there].copying.set()
    await until(lambda: any(method == "hand_off" for method, _ in fleet[here].calls))
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert len(fleet[there].adds) == 1 and fleet.metric("moves_total", reason="drain", mode="kv") == 1
    await until(lambda: not fleet.held)


async def test_the_source_dies_during_a_copy(fleet: Fleet) -> None:
    here, there = await started(fleet, "d1", "d2")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    await fleet.kill(here)
    finish(fleet)
    assert await asyncio.wait_for(moving, 5) is HandOff.GONE
    await fleet.expect_exact("r", TOKENS)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1


async def test_a_drain_that_is_called_off_leaves_the_context_where_it_is(fleet: Fleet) -> None:
    here, there = await started(fleet, "d1", "d2")
    fleet[there].copying.clear()

    def view(state: ReplicaState) -> ClusterView:
        replicas = (
            replace(e.replica, state=state if e.name == here else e.replica.state) for e in fleet.engines.values()
        )
        return ClusterView(version=99, replicas=tuple(replicas))

    await fleet.client.follow(view(ReplicaState.DRAINING))
    await until(lambda: fleet[there].copies)
    await fleet.client.follow(view(ReplicaState.READY))
    fleet[there].copying.set()
    await until(lambda: not fleet.client.engines[there].legs)
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert [method for method, _ in fleet[here].calls].count("hand_off") == 0
    assert fleet[there].adds == []


async def test_a_client_that_leaves_during_a_copy(fleet: Fleet) -> None:
    _, there = await started(fleet, "d1", "d2")
    fleet[there].copying.clear()
    moving = asyncio.create_task(move(fleet, there))
    await until(lambda: fleet[there].copies)
    await fleet.client.abort_requests_async(["r"])
    fleet[there].copying.set()
    assert await asyncio.wait_for(moving, 5) is HandOff.GONE
    await until(lambda: not fleet.held and not fleet.client.engines[there].legs)


async def test_only_so_many_moves_at_once(fleet: Fleet) -> None:
    await fleet.start("d1", "d2")
    for name in ("d1", "d2"):
        fleet[name].pace()
    for n in range(6):
        await fleet.ask(f"r{n}", prompt_tokens=SHORT, max_tokens=20, first_token=n + 1)
    await until(lambda: sum(len(fleet[name].adds) for name in ("d1", "d2")) == 6)
    for engine in fleet.engines.values():
        engine.copying.clear()
    moving = [asyncio.create_task(fleet.client.move(f"r{n}", reason=MoveReason.REBALANCE)) for n in range(6)]
    await until(lambda: sum(len(e.copies) for e in fleet.engines.values()) == 2)
    await asyncio.sleep(0.05)
    assert sum(len(e.copies) for e in fleet.engines.values()) == 2
    finish(fleet)
    await asyncio.wait_for(asyncio.gather(*moving), 5)
    for n in range(6):
        await fleet.expect_exact(f"r{n}", 20, first_token=n + 1)
    await until(lambda: not fleet.held)


async def test_a_move_keeps_its_turn_until_the_destination_answers(fleet: Fleet) -> None:
    await fleet.start("d1", "d2")
    for n in range(3):
        await fleet.ask(f"r{n}", prompt_tokens=SHORT, max_tokens=20, first_token=n + 1)
    for name in ("d1", "d2"):
        fleet[name].pace()
    await until(lambda: sum(len(fleet[name].adds) for name in ("d1", "d2")) == 3)
    moving = [asyncio.create_task(fleet.client.move(f"r{n}", reason=MoveReason.REBALANCE)) for n in range(3)]
    await until(lambda: sum(task.done() for task in moving) == 2)
    await asyncio.sleep(0.05)
    assert sum(len(e.copies) for e in fleet.engines.values()) == 2, "two cut over, the third may not copy yet"
    finish(fleet)
    await asyncio.wait_for(asyncio.gather(*moving), 5)
    for n in range(3):
        await fleet.expect_exact(f"r{n}", 20, first_token=n + 1)
    await until(lambda: not fleet.held)


async def test_on_a_slow_link_the_cut_waits_for_a_full_block_and_the_tail_is_recomputed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "CARRIED_WITHIN_STEPS", 0.0)
    monkeypatch.setattr(mover, "LATE_AFTER_S", 5.0)
    log = MoveLog()
    wanted_log.set(log)
    here, there = await started(fleet, "d1", "d2")
    moving = asyncio.create_task(move(fleet, there))
    await copied(fleet, there)
    to_boundary = FULL + 2 * BLOCK_SIZE_TOKENS - (SHORT + 4 - 1)
    fleet[here].allow(to_boundary - 1)
    await until(lambda: len(fleet.tokens["r"]) == 4 + to_boundary - 1)
    await asyncio.sleep(0.05)
    assert len(fleet[there].copies) == 1 and not moving.done(), "one token short of a full block"
    fleet[here].allow(1)
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN
    assert len(fleet[there].copies) == 2
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    (leg,) = fleet[there].adds
    assert leg.kv is None and len(leg.leg["output_token_ids"]) == 4 + to_boundary + 1
    assert fleet.metric("recomputed_tokens_total") == 1
    assert fleet.metric("moves_total", reason="drain", mode="kv") == 1
    assert [(told.mode, told.recomputed_tokens) for told in log.completed] == [("kv", 1)]
    await until(lambda: not fleet.held)


@pytest.mark.parametrize(("lead_s", "copies_of_others"), [(0.0, 1), (1e6, 0)], ids=("far from it", "near it"))
async def test_near_its_boundary_a_cut_over_lets_no_other_copy_begin(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, lead_s: float, copies_of_others: int
) -> None:
    monkeypatch.setattr(moves, "CARRIED_WITHIN_STEPS", 0.0)
    monkeypatch.setattr(mover, "LATE_AFTER_S", 5.0)
    monkeypatch.setattr(mover, "lead_s", lambda _stages: lead_s)
    here, there = await started(fleet, "d1", "d2")
    await fleet.ask("other", prompt_tokens=SHORT, max_tokens=TOKENS, first_token=9)
    await until(lambda: fleet[there].adds)
    fleet[there].allow(1)
    moving = asyncio.create_task(move(fleet, there))
    await copied(fleet, there)
    await asyncio.sleep(0.05)  # let it come to its boundary
    others = asyncio.create_task(fleet.client.move("other", reason=MoveReason.DRAIN, destination=here))
    await asyncio.sleep(0.05)
    assert not moving.done() and len(fleet[here].copies) == copies_of_others
    fleet[here].allow(FULL + 2 * BLOCK_SIZE_TOKENS - (SHORT + 4 - 1))
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN
    fleet[here].allow(1)
    await until(lambda: len(fleet[there].adds) == 2)
    fleet[there].allow(2)
    await until(lambda: fleet[here].copies)
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    await fleet.expect_exact("other", TOKENS, first_token=9)
    await asyncio.wait_for(others, 5)
    await until(lambda: not fleet.held)


async def test_a_block_that_does_not_fill_up_in_time_is_carried(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "CARRIED_WITHIN_STEPS", 0.0)
    _, there = await started(fleet, "d1", "d2")
    assert await asyncio.wait_for(move(fleet, there), 5) is HandOff.AT_NEXT_TOKEN
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    (leg,) = fleet[there].adds
    assert leg.kv is not None
    await until(lambda: not fleet.held)


async def test_a_busy_destination_recomputes_the_tail(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "LATE_AFTER_S", 5.0)
    here, there = await started(fleet, "d1", "d2")
    await fleet.ask("other", prompt_tokens=SHORT, max_tokens=TOKENS, first_token=9)
    await until(lambda: fleet[there].adds)
    moving = asyncio.create_task(move(fleet, there))
    await copied(fleet, there)
    fleet[here].allow(FULL + 2 * BLOCK_SIZE_TOKENS - (SHORT + 4 - 1))
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    assert fleet[there].adds[1].kv is None and fleet.metric("recomputed_tokens_total") == 1
    await until(lambda: not fleet.held)


async def test_a_tail_meant_for_another_engine_is_carried(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "CARRIED_WITHIN_STEPS", 0.0)
    monkeypatch.setattr(mover, "LATE_AFTER_S", 5.0)
    here, there = await started(fleet, "d1", "d2", "d3")
    moving = asyncio.create_task(move(fleet, there))
    await copied(fleet, there)
    fleet[here].allow(FULL + 2 * BLOCK_SIZE_TOKENS - (SHORT + 4 - 1))
    assert await asyncio.wait_for(moving, 5) is HandOff.AT_NEXT_TOKEN
    await fleet.kill(there)
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    (other,) = {"d1", "d2", "d3"} - {here, there}
    assert fleet[other].adds[0].kv is not None
    await until(lambda: not fleet.held)


@pytest.mark.parametrize(
    ("took_steps", "waits"),
    [(1.5, False), (2.0, False), (3.5, False), (4.5, True), (10.0, True)],
    ids=("asking alone", "the same", "quick", "slow", "very slow"),
)
def test_what_asking_takes_does_not_make_a_link_slow(took_steps: float, waits: bool) -> None:
    stage = Stage(tokens=256, blocks=8, took_s=took_steps * 0.03, left_tokens=0)
    assert waits_for_boundary(270, [stage], busy=False, step_s=0.03, block_size_tokens=32) is waits


@given(
    num_tokens=st.integers(1, 5000),
    paces_s=st.lists(st.tuples(st.integers(1, 50), st.floats(0.0001, 1)), max_size=4),
    busy=st.booleans(),
    step_s=st.floats(0, 1),
    block=st.sampled_from([16, 128]),
)
def test_a_wait_for_a_boundary_is_short_and_pays(
    num_tokens: int, paces_s: list[tuple[int, float]], busy: bool, step_s: float, block: int
) -> None:
    stages = [Stage(tokens=0, blocks=blocks, took_s=blocks * pace_s, left_tokens=0) for blocks, pace_s in paces_s]
    waits = waits_for_boundary(num_tokens, stages, busy=busy, step_s=step_s, block_size_tokens=block)
    known = [pace_s for blocks, pace_s in paces_s if blocks >= moves.PACED_BLOCKS]
    if waits:
        left = block - (num_tokens - 1) % block
        assert stages and (busy or known) and step_s > 0 and left * step_s <= BOUNDARY_WAIT_S
    if not busy and known and min(known) < 0.2 * step_s:
        assert not waits, "a quick link to an idle engine carries the tail"


@given(
    num_tokens=st.integers(1, 20_000),
    block=st.sampled_from([16, 128]),
    growth=st.integers(0, 400),
    pace_s=st.floats(0.0001, 0.2),
    step_s=st.floats(0.005, 0.2),
)
def test_copies_end(num_tokens: int, block: int, growth: int, pace_s: float, step_s: float) -> None:
    """On any link, also one that a context outgrows: `growth` tokens come during each stage."""
    stages: list[Stage] = []
    while copies_on(num_tokens, stages, block_size_tokens=block):
        beyond = stages[-1].tokens if stages else 0
        assert full_tokens(num_tokens, block) > beyond, "a stage carries something"
        blocks = min(stage_blocks(stages, step_s), (full_tokens(num_tokens, block) - beyond) // block)
        num_tokens += growth
        tokens = beyond + blocks * block
        left_tokens = full_tokens(num_tokens, block) - tokens
        stages.append(Stage(tokens=tokens, blocks=blocks, took_s=blocks * pace_s + 2 * step_s, left_tokens=left_tokens))
        assert len(stages) < 8_000, "it copies for ever"
    if growth == 0:
        assert full_tokens(num_tokens, block) == (stages[-1].tokens if stages else 0), "all that is full was copied"


@pytest.mark.parametrize("growth", [64, 10_000], ids=("as fast as it copies", "much faster"))
def test_a_context_that_outgrows_the_link_is_not_chased(growth: int) -> None:
    stages = [
        Stage(tokens=64 * n, blocks=4, took_s=1.0, left_tokens=640 + (growth - 64) * n)
        for n in range(1, PATIENCE_STAGES + 1)
    ]
    assert copies_on(10**6, stages[:-1], block_size_tokens=16)
    assert not copies_on(10**6, stages, block_size_tokens=16)


@given(
    blocks=st.integers(1, 5_000),
    pace_s=st.floats(1e-6, 1.0),
    step_s=st.floats(0.0, 0.3),
)
def test_a_stage_is_short_on_the_link_as_it_was(blocks: int, pace_s: float, step_s: float) -> None:
    asking_s = moves.ASKING_STEPS * step_s
    last = Stage(tokens=0, blocks=blocks, took_s=asking_s + blocks * pace_s, left_tokens=0)
    then = stage_blocks([last], step_s)
    wanted_s = max(moves.STAGE_S, moves.STAGE_STEPS * step_s)
    assert then == PACED_BLOCKS or then * pace_s <= 1.001 * wanted_s
    assert then <= max(PACED_BLOCKS, MOST_GROWTH * blocks)
    assert then >= min(MOST_GROWTH * blocks, int(0.999 * wanted_s / pace_s)), "and not shorter than it may be"


async def paced(fleet: Fleet, *asks: tuple[str, int, int]) -> None:
    """Contexts (id, prompt tokens, first token) on m1, and m2 with nothing to do; both generate as allowed."""
    await fleet.start("m1")
    fleet["m1"].pace()
    for request_id, prompt_tokens, first_token in asks:
        await fleet.ask(request_id, prompt_tokens=prompt_tokens, max_tokens=TOKENS, first_token=first_token)
    await until(lambda: len(fleet["m1"].adds) == len(asks))
    await fleet.start("m2")
    fleet["m2"].pace()


async def test_the_first_stage_asks_how_quick_the_link_is(fleet: Fleet) -> None:
    await paced(fleet, ("r", LONG_PROMPT, 7))
    assert await move(fleet, "m2") is HandOff.AT_NEXT_TOKEN
    told = [copy.kv["remote_num_tokens"] for copy in fleet["m2"].copies if copy.kv]
    assert told == [FIRST_BLOCKS * BLOCK_SIZE_TOKENS, 2 * FIRST_BLOCKS * BLOCK_SIZE_TOKENS]
    finish(fleet)
    await fleet.expect_exact("r", TOKENS)
    await until(lambda: not fleet.held)


async def test_a_cut_over_waits_for_a_clear_way_and_keeps_it(fleet: Fleet) -> None:
    await paced(fleet, ("long", LONG_PROMPT, 7), ("r", BLOCK_SIZE_TOKENS - 1, 9))
    fleet["m2"].copying.clear()
    moving = [asyncio.create_task(fleet.client.move("long", reason=MoveReason.DRAIN, destination="m2"))]
    await until(lambda: fleet["m2"].copies)
    moving.append(asyncio.create_task(move(fleet, "m2")))
    await asyncio.sleep(0.05)
    assert not handed_off(fleet, "m1"), "bulk is on its way"
    fleet["m2"].copying.set()
    await until(lambda: handed_off(fleet, "m1") == ["r#1"])
    await asyncio.sleep(0.05)
    assert len(fleet["m2"].copies) == 1, "no further bulk until it has arrived"
    fleet["m1"].allow(2)
    fleet["m2"].allow(1)
    assert await asyncio.wait_for(asyncio.gather(*moving), 4) == [HandOff.AT_NEXT_TOKEN] * 2
    assert len(fleet["m2"].copies) == 2
    finish(fleet)
    await fleet.expect_exact("r", TOKENS, first_token=9)
    await fleet.expect_exact("long", TOKENS)
    await until(lambda: not fleet.held)


def handed_off(fleet: Fleet, name: str) -> list[str]:
    return [leg_id for method, (leg_ids, *_) in fleet[name].calls if method == "hand_off" for leg_id in leg_ids]
