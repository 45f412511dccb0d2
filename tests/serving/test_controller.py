"""The controller over real links: who is admitted, who is dropped, and when those who watch hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from serving.clock import Clock, SystemClock
from serving.engine.channel import ChannelKeys
from serving.pools import controller as controller_module
from serving.pools.controller import Controller, GatewayReport
from serving.types import ClusterView, MoveWish, PoolRole, Replica, ReplicaState
from tests.fakes import FakeClock, ScriptedEngine, engine_info, replica, settle, until


class Cluster:
    def __init__(self, clock: Clock, *, settle_s: float = 0.0) -> None:
        self.keys, self.clock = ChannelKeys.generate(), clock
        self.controller = Controller(keys=self.keys, clock=clock, settle_s=settle_s)
        self.engines: list[ScriptedEngine] = []

    def engine(self, name: str, role: PoolRole = PoolRole.DECODE) -> ScriptedEngine:
        self.engines.append(ScriptedEngine(name, role, keys=self.keys, clock=self.clock))
        return self.engines[-1]

    async def join(self, *names: str) -> list[ScriptedEngine]:
        engines = [self.engine(name) for name in names]
        for engine in engines:
            await self.controller.announce(engine.replica)
            await self.until_ready(engine.name)
        return engines

    async def view(self) -> ClusterView:
        return await self.controller.watch(-1, 0.0)

    async def until_ready(self, *names: str) -> None:
        for _ in range(100):
            view = await self.view()
            if set(names) <= {r.replica_id for r in view.ready()}:
                return
            await self.controller.watch(view.version, 0.1)
        raise AssertionError(f"{names} did not become ready")

    async def until_gone(self, name: str) -> None:
        for _ in range(100):
            view = await self.view()
            if name not in [r.replica_id for r in view.replicas]:
                return
            await self.controller.watch(view.version, 0.1)
        raise AssertionError(f"{name} did not leave")

    async def close(self) -> None:
        for engine in self.engines:
            await self.controller.leave(engine.name)
            await engine.close()
        self.controller._zmq.destroy(linger=0)  # a controller lives as long as its process, so it has no close


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster(SystemClock())
    yield cluster
    await cluster.close()


def kv(name: str) -> dict[str, object]:
    return asdict(engine_info(name).kv)


async def test_the_first_engine_has_nobody_to_meet(cluster: Cluster) -> None:
    (a,) = await cluster.join("a")
    assert a.calls == []


async def test_engines_meet_both_ways_before_they_serve(cluster: Cluster) -> None:
    a, b, c = await cluster.join("a", "b", "c")
    assert a.calls == [("warm_peers", [[kv("b")]]), ("warm_peers", [[kv("c")]])]
    assert b.calls == [("warm_peers", [[kv("a")]]), ("warm_peers", [[kv("c")]])]
    assert c.calls == [("warm_peers", [[kv("a"), kv("b")]])]


async def test_engines_that_come_together_all_become_ready(cluster: Cluster) -> None:
    engines = [cluster.engine(name) for name in "abcd"]
    await asyncio.gather(*(cluster.controller.announce(e.replica) for e in engines))
    await cluster.until_ready(*"abcd")


async def test_a_repeated_announcement_changes_nothing(cluster: Cluster) -> None:
    a, _ = await cluster.join("a", "b")
    before, calls = await cluster.view(), list(a.calls)
    for _ in range(3):
        await cluster.controller.announce(a.replica)
    await settle()
    assert (await cluster.view(), a.calls) == (before, calls)


async def test_an_engine_that_cannot_meet_the_others_is_not_admitted(cluster: Cluster) -> None:
    await cluster.join("a")
    bad = cluster.engine("bad")
    bad.warm_error = "no route"
    await cluster.controller.announce(bad.replica)
    await cluster.until_gone("bad")
    await until(lambda: bad.lost_peers)
    bad.warm_error = None
    await cluster.controller.announce(bad.replica)  # it repeats itself while it lives
    await cluster.until_ready("a", "bad")


async def test_an_engine_that_does_not_answer_is_not_admitted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "LINK_TIMEOUT_S", 0.1)
    await cluster.controller.announce(replica("nobody"))
    await cluster.until_gone("nobody")


async def test_a_mute_peer_does_not_keep_others_out(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "WARM_TIMEOUT_S", 0.1)
    (mute,) = await cluster.join("mute")
    mute.go_silent()
    await cluster.join("b")


async def test_a_lost_engine_leaves_the_view(cluster: Cluster) -> None:
    a, _ = await cluster.join("a", "b")
    await a.die()
    await cluster.until_gone("a")
    await cluster.until_ready("b")


async def test_a_silent_engine_leaves_the_view() -> None:
    clock = FakeClock()
    cluster = Cluster(clock)
    try:
        (a,) = await cluster.join("a")
        a.go_silent()
        await clock.advance(11.0)
        assert (await cluster.view()).replicas == ()
    finally:
        await cluster.close()


async def test_an_engine_that_says_goodbye_leaves_the_view(cluster: Cluster) -> None:
    a, _ = await cluster.join("a", "b")
    await cluster.controller.leave("a")
    assert [r.replica_id for r in (await cluster.view()).replicas] == ["b"]
    await until(lambda: a.lost_peers)


async def test_one_that_comes_back_elsewhere_is_not_dropped_with_its_older_self(cluster: Cluster) -> None:
    (older,) = await cluster.join("a")
    newer = cluster.engine("a")
    await cluster.controller.announce(newer.replica)
    await cluster.until_ready("a")
    await until(lambda: older.lost_peers)
    await older.die()
    await settle()
    view = await cluster.view()
    assert [r.address for r in view.ready()] == [newer.server.address]


async def test_a_watch_returns_at_once_on_a_change(cluster: Cluster) -> None:
    version = (await cluster.view()).version
    watching = asyncio.create_task(cluster.controller.watch(version, 60.0))
    await settle(2)
    assert not watching.done()
    (a,) = await cluster.join("a")
    view = await asyncio.wait_for(watching, 1.0)
    assert view.version > version and [r.replica_id for r in view.replicas] == [a.name]
    assert (await asyncio.wait_for(cluster.controller.watch(version, 60.0), 1.0)).version > version


async def test_a_watch_returns_after_its_time_without_a_change(cluster: Cluster) -> None:
    await cluster.join("a")
    before = await cluster.view()
    started_s = cluster.clock.now_s()
    assert await cluster.controller.watch(before.version, 0.1) == before
    assert cluster.clock.now_s() - started_s >= 0.1


async def test_a_restarted_controller_waits_for_all_to_speak() -> None:
    clock = FakeClock()
    cluster = Cluster(clock, settle_s=4.0)
    try:
        watching = asyncio.create_task(cluster.controller.watch(-1, 60.0))
        await clock.advance(3.9)
        await cluster.controller.announce(cluster.engine("a").replica)
        await settle()
        assert not watching.done()
        await clock.advance(0.2)
        assert [r.replica_id for r in (await asyncio.wait_for(watching, 1.0)).ready()] == ["a"]
    finally:
        await cluster.close()


async def test_status_shows_each_replica_with_its_load(cluster: Cluster) -> None:
    assert await cluster.controller.status() == {"version": 0, "replicas": [], "gateways": [], "in_flight": 0}
    await cluster.join("a")
    await cluster.controller.report("g1", GatewayReport(exposition="one", in_flight=3))
    await cluster.controller.report("g1", GatewayReport(exposition="two", in_flight=2))
    status = await cluster.controller.status()
    (shown,) = status["replicas"]
    assert (shown["replica"], shown["state"], shown["role"]) == ("a", "ready", "decode")
    assert (shown["kv_blocks"], shown["running"], shown["kv_usage"]) == (1000, 0, 0.0)
    assert status["gateways"] == ["g1"] and status["in_flight"] == 2
    assert await cluster.controller.gateway_expositions() == ["two"]


async def test_a_newcomer_elsewhere_is_admitted_though_its_older_self_never_answered(cluster: Cluster) -> None:
    newer = cluster.engine("a")
    older: Replica = replace(newer.replica, address="tcp://127.0.0.1:1")
    await cluster.controller.announce(older)
    await settle(3)
    await cluster.controller.announce(newer.replica)
    await cluster.until_ready("a")
    assert [r.address for r in (await cluster.view()).ready()] == [newer.server.address]


async def test_before_a_shutdown_gateways_learn_to_refuse(cluster: Cluster) -> None:
    before = await cluster.view()
    await cluster.controller.stop_accepting()
    after = await cluster.view()
    assert before.accepting and not after.accepting and after.version > before.version
    await cluster.join("late")
    assert not (await cluster.view()).accepting, "a newcomer does not open the doors again"


class SlowToMeet(ScriptedEngine):
    """Has met its peers only when `meeting` is set."""

    def __init__(self, name: str, *, keys: ChannelKeys, clock: Clock) -> None:
        super().__init__(name, PoolRole.DECODE, keys=keys, clock=clock)
        self.meeting = asyncio.Event()

    async def _call(self, method: str, args: list[Any]) -> Any:
        answer = await super()._call(method, args)
        await self.meeting.wait()
        return answer


async def slow_to_meet(cluster: Cluster) -> tuple[SlowToMeet, asyncio.Event]:
    """One that is in the middle of its warm-up."""
    await cluster.join("a")
    slow = SlowToMeet("slow", keys=cluster.keys, clock=cluster.clock)
    cluster.engines.append(slow)
    await cluster.controller.announce(slow.replica)
    await until(lambda: slow.calls)
    return slow, slow.meeting


async def state_of(cluster: Cluster, name: str) -> tuple[ReplicaState, float | None]:
    (found,) = (r for r in (await cluster.view()).replicas if r.replica_id == name)
    return found.state, found.leaves_at_s


async def test_a_drain_that_comes_during_the_warm_up_stands(cluster: Cluster) -> None:
    slow, meeting = await slow_to_meet(cluster)
    assert await cluster.controller.drain(slow.name, 60.0)
    drained = await state_of(cluster, slow.name)
    assert drained[0] is ReplicaState.DRAINING and drained[1] is not None
    meeting.set()
    await settle()
    assert await state_of(cluster, slow.name) == drained
    assert await cluster.controller.undrain(slow.name)
    assert await state_of(cluster, slow.name) == (ReplicaState.READY, None)


async def test_a_drain_that_ends_before_the_warm_up_lets_nothing_in_early(cluster: Cluster) -> None:
    slow, meeting = await slow_to_meet(cluster)
    await cluster.controller.drain(slow.name)
    assert await cluster.controller.undrain(slow.name)
    assert await state_of(cluster, slow.name) == (ReplicaState.STARTING, None)
    meeting.set()
    await cluster.until_ready(slow.name)


async def test_a_draining_replica_whose_link_broke_comes_back_draining(cluster: Cluster) -> None:
    a, _ = await cluster.join("a", "b")
    await cluster.controller.drain("a", 60.0)
    drained = await state_of(cluster, "a")
    await a.server.leave("held up for a while")
    await cluster.until_gone("a")
    assert not await cluster.controller.undrain("nobody")
    again = cluster.engine("a")  # stands for the same one
    assert await cluster.controller.announce(again.replica) is ReplicaState.DRAINING
    await until(lambda: again.calls)
    await settle()
    assert await state_of(cluster, "a") == drained
    await cluster.controller.undrain("a")
    await cluster.until_ready("a", "b")


async def test_one_that_left_and_one_that_serves_again_are_not_remembered_as_draining(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    for name in "abc":
        await cluster.controller.drain(name)
    await cluster.controller.leave("a")
    await cluster.controller._drop("b", "silent")
    assert await cluster.controller.undrain("b"), "known, though it is out of sight"
    await cluster.controller.undrain("c")
    await cluster.controller._drop("c", "silent")
    for name in "abc":
        assert await cluster.controller.announce(cluster.engine(name).replica) is ReplicaState.STARTING


async def test_a_restarted_controller_hears_from_a_replica_that_it_drains(cluster: Cluster) -> None:
    (a,) = await cluster.join("a")
    assert await cluster.controller.announce(a.replica) is ReplicaState.READY
    await cluster.controller.drain("a", 60.0)
    state = await cluster.controller.announce(a.replica)
    restarted = Controller(keys=cluster.keys, clock=cluster.clock, settle_s=0.0)
    try:
        assert await restarted.announce(replace(a.replica, state=state)) is ReplicaState.DRAINING
        await until(lambda: restarted._links)
        assert [r.state for r in (await restarted.watch(-1, 0.0)).replicas] == [ReplicaState.DRAINING]
    finally:
        await restarted.close()


def report(*contexts: str, exposition: str = "") -> GatewayReport:
    shown = tuple({"context": name, "replica": "a"} for name in contexts)
    return GatewayReport(exposition=exposition, in_flight=len(contexts), contexts=shown)


async def test_contexts_are_those_of_the_last_reports(cluster: Cluster) -> None:
    await cluster.controller.report("g1", report("old"))
    await cluster.controller.report("g1", report("r", "s"))
    await cluster.controller.report("g2", report("t"))
    assert await cluster.controller.contexts() == [
        {"gateway": "g1", "context": "r", "replica": "a"},
        {"gateway": "g1", "context": "s", "replica": "a"},
        {"gateway": "g2", "context": "t", "replica": "a"},
    ]


async def test_what_a_stopped_gateway_said_is_forgotten() -> None:
    clock = FakeClock()
    cluster = Cluster(clock)
    try:
        await cluster.controller.report("stopped", report("r", exposition="one"))
        await clock.advance(6.0)
        await cluster.controller.report("alive", report("s", exposition="two"))
        assert [c["context"] for c in await cluster.controller.contexts()] == ["r", "s"]
        await clock.advance(6.0)
        assert [c["context"] for c in await cluster.controller.contexts()] == ["s"]
        assert await cluster.controller.gateway_expositions() == ["two"]
        status = await cluster.controller.status()
        assert status["gateways"] == ["alive"] and status["in_flight"] == 1
        assert not await cluster.controller.pass_on(MoveWish(wish_id="1", request_id="r"), "alive")
    finally:
        await cluster.close()


async def test_a_wish_reaches_who_watches_at_once_and_once(cluster: Cluster) -> None:
    await cluster.join("a")
    await cluster.controller.report("g1", report("r"))
    before = await cluster.view()
    watching = asyncio.create_task(cluster.controller.watch(before.version, 60.0))
    await settle(2)
    wish = MoveWish(wish_id="1", request_id="r", destination="b", carry_kv=False)
    assert await cluster.controller.pass_on(wish, "g2")
    view = await asyncio.wait_for(watching, 1.0)
    assert view == replace(before, version=before.version + 1, wishes=(wish,))
    assert await cluster.controller.pass_on(wish, "g2"), "said twice, wished once"
    assert await cluster.controller.watch(view.version, 0.05) == view


async def test_a_wish_that_nobody_can_grant_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    await cluster.controller.report("g1", report("r"))
    before = await cluster.view()
    assert not await cluster.controller.pass_on(MoveWish(wish_id="1", request_id="nobody"), "g2")
    assert not await cluster.controller.pass_on(MoveWish(wish_id="2", request_id="r"), "g1"), "its owner has refused it"
    assert await cluster.view() == before
