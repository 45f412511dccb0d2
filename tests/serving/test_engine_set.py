"""The engine set: links follow the view, and candidates tell what an engine carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serving.clock import SystemClock
from serving.contexts import engine_set
from serving.contexts.engine_set import Engine, EngineSet
from serving.engine.channel import ChannelKeys
from serving.engine.messages import Frames, Kind, Step
from serving.types import ClusterView, Load, PoolRole, Replica, ReplicaState
from tests.fakes import ScriptedEngine, replica, until

NOBODY = replica("nobody", address="tcp://127.0.0.1:1")


class World:
    def __init__(self) -> None:
        self.keys = ChannelKeys.generate()
        self.steps: list[tuple[str, Frames]] = []
        self.lost: list[tuple[str, str]] = []
        self.stalled: list[Engine] = []
        self.set = EngineSet(
            keys=self.keys,
            clock=SystemClock(),
            on_step=self._on_step,
            on_stalled=self.stalled.append,
            on_lost=self._on_lost,
        )
        self.engines: list[ScriptedEngine] = []

    def _on_step(self, engine: Engine, payload: Frames) -> None:
        self.steps.append((engine.replica.replica_id, payload))

    def _on_lost(self, engine: Engine, reason: str) -> None:
        self.lost.append((engine.replica.replica_id, reason))

    def engine(self, name: str) -> ScriptedEngine:
        self.engines.append(ScriptedEngine(name, PoolRole.DECODE, keys=self.keys, clock=SystemClock()))
        return self.engines[-1]

    def show(self, *replicas: Replica) -> None:
        self.set.apply(ClusterView(version=1, replicas=replicas))

    async def apply(self, *replicas: Replica) -> None:
        """Show them, and wait until they have answered."""
        self.show(*replicas)
        await until(lambda: all(engine.link.info for engine in self.set.all()))

    def ids(self) -> list[str]:
        return [c.replica_id for c in self.set.candidates()]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.set.close()
    for engine in world.engines:
        await engine.close()


async def test_the_set_follows_the_view(world: World) -> None:
    a, b = world.engine("a").replica, world.engine("b").replica
    await world.apply(a, b)
    assert world.ids() == ["a", "b"]
    await world.apply(b)
    assert (world.ids(), world.lost) == (["b"], [("a", "left the cluster")])
    assert (world.set.get("a"), world.set.get(None)) == (None, None)
    await until(lambda: world.engines[0].lost_peers)
    await world.apply(a, b)
    assert sorted(world.ids()) == ["a", "b"]


@pytest.mark.parametrize("state", [ReplicaState.STARTING, ReplicaState.DRAINING])
async def test_only_ready_replicas_are_candidates(world: World, state: ReplicaState) -> None:
    ready = world.engine("a").replica
    await world.apply(ready)
    link = world.set["a"].link
    await world.apply(replace(ready, state=state))
    assert world.ids() == [] and world.set["a"].link is link
    await world.apply(replace(ready, state=ReplicaState.GONE))
    assert world.set.all() == []


async def test_an_engine_that_does_not_answer_is_no_candidate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_set, "OPEN_TIMEOUT_S", 0.15)
    world.show(NOBODY, world.engine("a").replica)
    await until(lambda: world.ids())
    assert (world.ids(), world.lost) == (["a"], [])
    await until(lambda: world.lost)
    assert [name for name, _ in world.lost] == ["nobody"]
    assert world.ids() == ["a"]


async def test_one_that_does_not_answer_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_set, "OPEN_TIMEOUT_S", 1.0)
    world.show(NOBODY, world.engine("a").replica)
    while not world.ids():
        before = asyncio.get_running_loop().time()
        await world.set.changed(5.0)
    assert asyncio.get_running_loop().time() - before < 0.5


async def test_changes_wake_those_who_wait(world: World) -> None:
    engine = world.engine("a")
    await world.set.changed(0.01)  # nothing changes: it returns all the same
    waiting = asyncio.create_task(world.set.changed(5.0))
    await asyncio.sleep(0)
    await world.apply(engine.replica)
    await asyncio.wait_for(waiting, 1.0)
    waiting = asyncio.create_task(world.set.changed(5.0))
    await asyncio.sleep(0)
    await engine.die()
    await asyncio.wait_for(waiting, 1.0)
    assert world.lost == [("a", "the core died")]


async def test_outputs_come_with_their_engine_and_load_reports_without(world: World) -> None:
    engine = world.engine("a")
    await world.apply(engine.replica)
    server = engine.server
    await server.broadcast(Kind.LOAD, Step(Load(running=5)))
    await server.send(server.peers[0], Kind.STEP, Step(Load(running=6)), [b"outputs"])
    await until(lambda: world.steps)
    assert [(name, [bytes(f) for f in frames]) for name, frames in world.steps] == [("a", [b"outputs"])]
    assert world.set["a"].link.load.running == 6


async def test_a_candidate_counts_what_was_sent_since_the_last_report(world: World) -> None:
    await world.apply(world.engine("a").replica)
    engine = world.set["a"]
    engine.link.load = Load(running=1, waiting=1, kv_usage=0.5)
    engine.begin("x#1", prefill_tokens=100, num_tokens=100)
    engine.begin("y#1", prefill_tokens=0, num_tokens=16)
    engine.begin("z#1", prefill_tokens=5, num_tokens=5)
    (candidate,) = world.set.candidates()
    assert candidate.outstanding_prefill_tokens == 105
    assert candidate.batch == 3  # its own three legs: more than the engine has said
    assert candidate.free_kv_blocks == 500 - 7 - 1 - 1
    engine.end("x#1")
    engine.unanswered.pop("z#1")
    engine.end("never began")
    (candidate,) = world.set.candidates()
    assert (candidate.outstanding_prefill_tokens, candidate.batch, candidate.free_kv_blocks) == (0, 2, 499)


async def test_an_engine_that_stands_still_is_no_candidate_until_it_moves(world: World) -> None:
    engine = world.engine("a")
    await world.apply(engine.replica)
    for stalled in (True, True, False):
        engine.load = Load(running=1, stalled=stalled)
        await engine.server.broadcast_load()
        await until(lambda: bool(world.set.candidates()) is not engine.load.stalled)
    assert [one.replica.replica_id for one in world.stalled] == ["a"]
    assert world.lost == []


async def test_an_engine_that_only_this_process_lost_is_linked_again(world: World) -> None:
    engine = world.engine("a")
    await world.apply(engine.replica)
    before = world.set["a"]
    before.link._lose("its connection broke")
    assert world.lost == [("a", "its connection broke")] and world.set.candidates() == []
    await until(lambda: world.set.candidates())
    assert world.set["a"] is not before
    await until(lambda: len(engine.lost_peers) == 1)
