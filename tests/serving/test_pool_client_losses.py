"""The pool client when things end early: aborts, lost engines, late outputs. No silence, no leak, no second token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from vllm.v1.engine import EngineCoreOutput, FinishReason

from serving.types import ClusterView, Load, ReplicaState
from tests.fakes import FakeClock, settle, token_stream, until
from tests.serving.fleet import LONG, SHORT, Fleet


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    await fleet.start("p1", "d1")
    yield fleet
    await fleet.close()


@pytest.mark.parametrize(("prompt_tokens", "name", "other"), [(LONG, "p1", "d1"), (SHORT, "d1", "p1")])
async def test_an_abort_reaches_the_engine_that_runs_the_leg(
    fleet: Fleet, prompt_tokens: int, name: str, other: str
) -> None:
    fleet[name].pace()
    await fleet.ask("r", prompt_tokens=prompt_tokens)
    await until(lambda: fleet[name].adds)
    await fleet.client.abort_requests_async(["r", "unknown"])
    await until(lambda: fleet[name].aborts)
    assert (fleet[name].aborts, fleet[other].aborts) == (["r#1"], [])
    await until(lambda: not fleet[name].running)
    assert fleet.client.engines[name].legs == set()
    assert (fleet.metric("requests_in_flight"), fleet.metric("requests_total", outcome="abort")) == (0, 1)
    await fleet.client.abort_requests_async(["r"])
    assert fleet.metric("requests_total", outcome="abort") == 1


async def test_an_abort_after_the_move_goes_to_the_new_engine(fleet: Fleet) -> None:
    fleet["d1"].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["d1"].adds)
    await fleet.client.abort_requests_async(["r"])
    await until(lambda: fleet["d1"].aborts)
    assert (fleet["p1"].aborts, fleet["d1"].aborts) == ([], ["r#2"])


async def drain_all(fleet: Fleet) -> None:
    """Nobody may take another leg."""
    replicas = (replace(engine.replica, state=ReplicaState.DRAINING) for engine in fleet.engines.values())
    await fleet.client.follow(ClusterView(version=99, replicas=tuple(replicas)))


async def test_an_abort_between_handoff_and_placement_releases_the_kv(fleet: Fleet) -> None:
    fleet["p1"].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["p1"].adds)
    await drain_all(fleet)  # nowhere to go after the first token
    fleet["p1"].allow(1)
    await until(lambda: fleet.tokens["r"])
    assert fleet.held == {("kv-p1", "r#1")}
    await fleet.client.abort_requests_async(["r"])
    await fleet.start("d2")
    await until(lambda: not fleet.held)
    assert [r.kv["remote_request_id"] for r in fleet["d1"].releases if r.kv] == ["r#1"], "not the source itself"
    assert fleet["d2"].adds == []
    assert (fleet.ends["r"], fleet.metric("requests_in_flight")) == ([], 0)


async def test_a_fenced_handoff_releases_its_kv(fleet: Fleet) -> None:
    fleet["p1"].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["p1"].adds)
    await fleet.client.abort_requests_async(["r"])
    (received,) = fleet["p1"].adds  # the abort crosses the handoff on the way
    late = EngineCoreOutput(
        request_id="r#1",
        new_token_ids=[1],
        finish_reason=FinishReason.LENGTH,
        kv_transfer_params=fleet["p1"].keep_kv(received),
    )
    await fleet["p1"].emit(received.peer, late)
    await until(lambda: fleet["d1"].releases)
    assert fleet.held == set()
    assert fleet["p1"].releases == []
    assert fleet.metric("fenced_tokens_total") == 1
    assert fleet.tokens["r"] == []


async def test_a_context_outlives_its_engine(fleet: Fleet) -> None:
    await fleet.start("d2")
    fleet["d1"].pace()
    fleet["d2"].pace()
    await fleet.ask("r", prompt_tokens=SHORT, max_tokens=8)
    await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
    first, second = ("d1", "d2") if fleet["d1"].adds else ("d2", "d1")
    fleet[first].allow(3)
    await until(lambda: len(fleet.tokens["r"]) == 3)
    await fleet.kill(first)
    fleet[second].allow(8)
    await fleet.expect_exact("r", 8)
    (replay,) = fleet[second].adds
    assert (replay.header.leg_id, replay.kv) == ("r#2", None)
    assert replay.leg["output_token_ids"] == token_stream([7], 3)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1
    assert fleet.metric("recomputed_tokens_total") == SHORT + 3
    assert fleet.metric("move_gap_seconds_count") == 1


async def test_a_moved_context_outlives_its_decode_engine_too(fleet: Fleet) -> None:
    fleet["d1"].pace()
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=5)
    await until(lambda: fleet["d1"].adds)
    fleet["d1"].allow(2)
    await until(lambda: len(fleet.tokens["r"]) == 3)
    await fleet.kill("d1")
    await fleet.expect_exact("r", 5)
    _, last = fleet["p1"].adds
    assert last.header.leg_id == "r#3" and last.leg["handoff_at_tokens"] is None, "nobody else is left to decode"
    assert fleet.metric("requests_total", outcome="length") == 1


async def test_a_context_whose_prefill_engine_dies_starts_again(fleet: Fleet) -> None:
    fleet["p1"].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["p1"].adds)
    await fleet.kill("p1")
    await fleet.expect_exact("r", 6)
    assert fleet["d1"].adds[0].leg["output_token_ids"] == []


async def test_an_engine_that_leaves_the_view_is_lost(fleet: Fleet) -> None:
    await fleet.start("d2")
    fleet["d1"].pace()
    fleet["d2"].pace()
    await fleet.ask("r", prompt_tokens=SHORT)
    await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
    first, second = ("d1", "d2") if fleet["d1"].adds else ("d2", "d1")
    left = fleet.engines.pop(first)
    await fleet.show()
    fleet[second].allow(6)
    await fleet.expect_exact("r", 6)
    await until(lambda: left.lost_peers)  # it was told BYE, so it frees what this gateway held
    await left.close()


async def test_without_an_engine_a_request_fails_in_time() -> None:
    fleet = Fleet(engine_wait_s=0.1)
    try:
        await fleet.ask("r", prompt_tokens=LONG)
        assert await fleet.finished("r") is FinishReason.ERROR
        await settle()
        assert (fleet.tokens["r"], fleet.ends["r"]) == ([], [FinishReason.ERROR])
        assert fleet.metric("requests_total", outcome="error") == 1
        assert fleet.metric("requests_in_flight") == 0
    finally:
        await fleet.close()


async def test_a_context_with_nowhere_to_go_fails_and_frees_its_kv() -> None:
    fleet = Fleet(engine_wait_s=0.1)
    try:
        await fleet.start("p1", "p2", "d1")
        fleet["p1"].pace()
        fleet["p2"].pace()
        await fleet.ask("r", prompt_tokens=LONG)
        await until(lambda: fleet["p1"].adds or fleet["p2"].adds)
        await drain_all(fleet)
        for name in ("p1", "p2"):
            fleet[name].allow(1)
        assert await fleet.finished("r") is FinishReason.ERROR
        assert fleet.tokens["r"] == token_stream([7], 1)
        await until(lambda: not fleet.held)
        assert fleet.metric("requests_in_flight") == 0
    finally:
        await fleet.close()


async def test_the_last_engine_dies_mid_stream_and_the_client_hears_of_it() -> None:
    fleet = Fleet(engine_wait_s=0.1)
    try:
        await fleet.start("d1")
        fleet["d1"].pace()
        await fleet.ask("r", prompt_tokens=SHORT)
        await until(lambda: fleet["d1"].adds)
        fleet["d1"].allow(2)
        await until(lambda: len(fleet.tokens["r"]) == 2)
        await fleet.kill("d1")
        assert await fleet.finished("r") is FinishReason.ERROR
        assert fleet.tokens["r"] == token_stream([7], 2)
    finally:
        await fleet.close()


async def test_a_request_waits_for_an_engine_that_comes_in_time() -> None:
    fleet = Fleet()
    try:
        await fleet.ask("r", prompt_tokens=LONG)
        await settle(5)
        await fleet.start("d1")
        await fleet.expect_exact("r", 6)
    finally:
        await fleet.close()


async def test_a_silent_engine_is_lost_and_its_contexts_move() -> None:
    clock = FakeClock()
    fleet = Fleet(clock=clock)
    try:
        await fleet.start("d1", "d2")
        fleet["d1"].pace()
        fleet["d2"].pace()
        await fleet.ask("r", prompt_tokens=SHORT)
        await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
        first, second = ("d1", "d2") if fleet["d1"].adds else ("d2", "d1")
        fleet[first].allow(2)
        await until(lambda: len(fleet.tokens["r"]) == 2)
        fleet[first].go_silent()
        fleet[second].allow(6)
        for _ in range(3):
            await clock.advance(1.0)
            await fleet.client.engines[second].link.call("reset_prefix_cache")  # it is heard in each second
        assert [c.replica_id for c in fleet.client.engines.candidates()] == [second]
        await fleet.expect_exact("r", 6)
    finally:
        await fleet.close()


async def test_contexts_leave_an_engine_that_stands_still(fleet: Fleet) -> None:
    await fleet.start("d2")
    for name in ("d1", "d2"):
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=SHORT)
    await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
    first, second = ("d1", "d2") if fleet["d1"].adds else ("d2", "d1")
    fleet[first].allow(2)
    await until(lambda: len(fleet.tokens["r"]) == 2)
    fleet[first].load = Load(running=1, stalled=True)
    await fleet[first].server.broadcast_load()
    await until(lambda: fleet[second].adds)
    await until(lambda: fleet[first].aborts == ["r#1"])  # should it move again, it drops the leg
    fleet[second].allow(6)
    await fleet.expect_exact("r", 6)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1


async def test_a_pull_from_an_engine_that_dies_is_replayed(fleet: Fleet) -> None:
    await fleet.start("d2")
    for name in ("d1", "d2"):
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
    destination = "d1" if fleet["d1"].adds else "d2"
    await fleet.kill("p1")  # the pull will never be answered
    await until(lambda: fleet[destination].aborts == ["r#2"])
    for name in ("d1", "d2"):
        fleet[name].allow(8)
    await fleet.expect_exact("r", 6)
    replays = [a for name in ("d1", "d2") for a in fleet[name].adds if a.header.leg_id == "r#3"]
    assert [a.kv for a in replays] == [None]


async def test_contexts_leave_an_engine_whose_core_is_told_to_end(fleet: Fleet) -> None:
    await fleet.start("d2")
    for name in ("d1", "d2"):
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=SHORT)
    await until(lambda: fleet["d1"].adds or fleet["d2"].adds)
    first, second = ("d1", "d2") if fleet["d1"].adds else ("d2", "d1")
    fleet[first].allow(2)
    await until(lambda: len(fleet.tokens["r"]) == 2)
    await fleet[first].stop_core()
    await until(lambda: fleet[second].adds)
    assert [c.replica_id for c in fleet.client.engines.candidates()] == ["p1", second], "it would refuse every leg"
    fleet[second].allow(6)
    await fleet.expect_exact("r", 6)
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1
    assert fleet.metric("requests_total", outcome="abort") == 0
    await fleet.kill(first)
    await fleet.start(first)
    assert len(fleet.client.engines.candidates()) == 3, "the next engine of that name is as good as any"


async def test_a_leg_that_an_ending_core_refuses_goes_elsewhere(fleet: Fleet) -> None:
    await fleet["d1"].stop_core()  # it has nothing, so the client does not hear of it
    await fleet.ask("r", prompt_tokens=SHORT)
    await fleet.expect_exact("r", 6)
    assert [a.header.leg_id for a in fleet["p1"].adds] == ["r#2"]


async def test_what_an_ending_core_handed_off_is_pulled(fleet: Fleet) -> None:
    for name in ("p1", "d1"):
        fleet[name].pace()
    await fleet.ask("r", prompt_tokens=LONG)
    await fleet.ask("s", prompt_tokens=LONG, first_token=8)
    await until(lambda: len(fleet["p1"].adds) == 2)
    fleet["p1"].allow(1)
    await until(lambda: fleet["d1"].adds)
    await fleet["p1"].stop_core()
    await until(lambda: len(fleet["d1"].adds) == 2)
    fleet["d1"].allow(20)
    await fleet.expect_exact("r", 6)
    await fleet.expect_exact("s", 6, first_token=8)
    assert [a.kv is not None for a in fleet["d1"].adds] == [True, False] and not fleet.held
    assert fleet.metric("moves_total", reason="prefill_done", mode="kv") == 1
    assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 1


@pytest.mark.parametrize("harm", ["stalled", "stopping", "not answered"])
async def test_kv_is_released_by_an_engine_that_works(fleet: Fleet, harm: str) -> None:
    fleet["p1"].pace()
    await fleet.start("d2")
    await fleet.ask("r", prompt_tokens=LONG)
    await until(lambda: fleet["p1"].adds)
    engine = fleet.client.engines["d1"]
    if harm == "not answered":
        engine.link.info = None
    else:
        setattr(engine, harm, True)
    await fleet.client.abort_requests_async(["r"])
    (received,) = fleet["p1"].adds
    late = EngineCoreOutput(
        request_id="r#1",
        new_token_ids=[1],
        finish_reason=FinishReason.LENGTH,
        kv_transfer_params=fleet["p1"].keep_kv(received),
    )
    await fleet["p1"].emit(received.peer, late)
    await until(lambda: fleet["d2"].releases)
    assert fleet.held == set() and fleet["d1"].releases == []
