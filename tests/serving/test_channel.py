"""The channel over real sockets: who may speak, what garbage does, and how each end notices that the other is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import zmq.asyncio

from serving.clock import Clock, SystemClock
from serving.engine.channel import ENGINE_SILENCE_S, PEER_TIMEOUT_S, ChannelKeys, EngineLink, beats
from serving.engine.messages import Frames, Gone, Kind, Step, pack, unpack
from serving.errors import EngineLost
from serving.types import Load, PoolRole
from tests.fakes import FakeClock, ScriptedEngine, engine_info, settle, until


class Ends:
    """An engine and what connects to it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.keys = clock, ChannelKeys.generate()
        self.engine = ScriptedEngine("e", PoolRole.DECODE, keys=self.keys, clock=clock)
        self.zmq = zmq.asyncio.Context()
        self.links: list[EngineLink] = []
        self.steps: list[tuple[Load, Frames]] = []
        self.gone: list[str] = []

    def link(self, keys: ChannelKeys | None = None) -> EngineLink:
        link = EngineLink(
            address=self.engine.server.address,
            keys=keys or self.keys,
            clock=self.clock,
            context=self.zmq,
            on_step=lambda load, payload: self.steps.append((load, payload)),
            on_gone=self.gone.append,
        )
        self.links.append(link)
        return link

    def raw(self, keys: ChannelKeys | None) -> zmq.asyncio.Socket:
        """A socket that speaks whatever a test wants; without keys, unencrypted."""
        socket = self.zmq.socket(zmq.DEALER)
        if keys is not None:
            socket.curve_serverkey = keys.server_public
            socket.curve_publickey, socket.curve_secretkey = keys.client_public, keys.client_secret
        socket.connect(self.engine.server.address)
        return socket

    async def close(self) -> None:
        for link in self.links:
            await link.close()
        await self.engine.close()
        self.zmq.destroy(linger=0)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends(SystemClock())
    yield ends
    await ends.close()


@pytest.fixture
async def still() -> AsyncIterator[Ends]:
    """Ends whose time stands still."""
    ends = Ends(FakeClock())
    yield ends
    await ends.close()


async def advance(ends: Ends, duration_s: float) -> None:
    assert isinstance(ends.clock, FakeClock)
    await ends.clock.advance(duration_s)


async def receive(socket: zmq.asyncio.Socket) -> tuple[Kind, Any]:
    kind, header, _ = unpack(await asyncio.wait_for(socket.recv_multipart(), 5))
    return kind, header


async def test_a_link_learns_what_the_engine_is(ends: Ends) -> None:
    link = ends.link()
    assert await link.opened(5) == engine_info("e")
    ends.engine.load = Load(running=3, waiting=2, kv_usage=0.5)
    await ends.engine.server.broadcast(Kind.LOAD, Step(ends.engine.load))
    await until(lambda: link.load.running == 3)
    assert link.load == Load(running=3, waiting=2, kv_usage=0.5)


async def test_payload_frames_arrive_as_they_were_sent(ends: Ends) -> None:
    await ends.link().opened(5)
    frames = [b"a" * 100_000, b"", b"\x00\xff"]
    await ends.engine.server.send(ends.engine.server.peers[0], Kind.STEP, Step(Load(running=1)), frames)
    await until(lambda: any(payload for _, payload in ends.steps))
    load, payload = next(step for step in ends.steps if step[1])
    assert (load, [bytes(frame) for frame in payload]) == (Load(running=1), frames)


@pytest.mark.parametrize("wrong", ["client", "server", "client public only"])
async def test_a_wrong_key_is_refused(ends: Ends, wrong: str) -> None:
    other = ChannelKeys.generate()
    keys = {
        "client": replace(other, server_public=ends.keys.server_public),
        "server": replace(ends.keys, server_public=other.server_public),
        "client public only": replace(ends.keys, client_secret=other.client_secret),
    }[wrong]
    link = ends.link(keys)
    with pytest.raises(EngineLost):
        await link.opened(0.2)
    await asyncio.wait_for(link.close(), 1)  # ZMQ would keep a goodbye waiting for a pipe that never comes
    assert ends.engine.server.peers == []
    await ends.link().opened(5)


async def test_without_keys_nobody_is_heard(ends: Ends) -> None:
    socket = ends.raw(None)
    await socket.send_multipart(pack(Kind.HELLO))
    assert not await socket.poll(150)
    assert ends.engine.server.peers == []


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xff", b"\xc0"],
        [bytes((Kind.ADD,))],
        [bytes((Kind.ADD,)), b"\xc1"],
        [bytes((Kind.CALL,)), b"\x93\x01\xa1a" + b"\x91" * 100_000],
        pack(Kind.GONE, Gone("not for engines")),
    ],
)
async def test_a_malformed_message_does_not_stop_the_server(ends: Ends, frames: list[bytes]) -> None:
    socket = ends.raw(ends.keys)
    await socket.send_multipart(frames)
    await socket.send_multipart(pack(Kind.HELLO))
    assert (await receive(socket))[0] is Kind.WELCOME


async def test_a_malformed_message_does_not_stop_a_link(ends: Ends) -> None:
    link = ends.link()
    await link.opened(5)
    await ends.engine.server._socket.send_multipart([ends.engine.server.peers[0], b"\xff", b"?"])
    assert await link.call("reset_prefix_cache", timeout_s=5) is True
    assert ends.gone == []


async def test_calls_return_fail_and_time_out(ends: Ends) -> None:
    link = ends.link()
    await link.opened(5)
    assert await link.call("warm_peers", [{"engine_id": "x"}]) == [0.0]
    assert ends.engine.calls == [("warm_peers", [[{"engine_id": "x"}]])]
    ends.engine.warm_error = "no route"
    with pytest.raises(RuntimeError, match="RuntimeError: no route"):
        await link.call("warm_peers", [])
    with pytest.raises(RuntimeError, match="KeyError"):
        await link.call("no such method")
    with pytest.raises(EngineLost, match="never unanswered"):
        await link.call("never", timeout_s=0.05)


async def test_calls_are_answered_out_of_order(ends: Ends) -> None:
    link = ends.link()
    await link.opened(5)
    stuck = asyncio.create_task(link.call("never", timeout_s=0.2))
    await settle(3)
    assert await link.call("reset_prefix_cache") is True
    with pytest.raises(EngineLost):
        await stuck


async def test_gone_is_told_once_and_ends_everything(ends: Ends) -> None:
    link = ends.link()
    await link.opened(5)
    call = asyncio.create_task(link.call("never"))
    await until(lambda: ends.engine.calls)
    for reason in ("first", "second"):
        await ends.engine.server.broadcast(Kind.GONE, Gone(reason))
    with pytest.raises(EngineLost, match="first"):
        await asyncio.wait_for(call, 5)
    await settle()
    assert ends.gone == ["first"]
    with pytest.raises(EngineLost, match="first"):
        await link.abort(["x"])


async def test_a_goodbye_frees_the_peer_once(ends: Ends) -> None:
    link = ends.link()
    await link.opened(5)
    (peer,) = ends.engine.server.peers
    await link.close()
    await until(lambda: ends.engine.lost_peers)
    assert (ends.engine.lost_peers, ends.engine.server.peers, ends.gone) == ([peer], [], [])


async def test_a_silent_peer_is_lost(still: Ends) -> None:
    socket = still.raw(still.keys)
    await socket.send_multipart(pack(Kind.HELLO))
    assert (await receive(socket))[0] is Kind.WELCOME
    await advance(still, PEER_TIMEOUT_S)
    assert still.engine.lost_peers == []
    await advance(still, 1.0)
    assert len(still.engine.lost_peers) == 1
    await advance(still, 2 * PEER_TIMEOUT_S)
    assert len(still.engine.lost_peers) == 1
    await socket.send_multipart(pack(Kind.HELLO))  # it may come back
    await until(lambda: still.engine.server.peers)


async def test_a_silent_engine_is_gone_once(still: Ends) -> None:
    await still.link().opened(5)
    still.engine.go_silent()
    await advance(still, ENGINE_SILENCE_S)
    assert still.gone == []
    await advance(still, 0.25)
    assert still.gone == ["silent for 2.0 s"]
    await advance(still, 2 * PEER_TIMEOUT_S)
    assert len(still.gone) == 1


async def test_a_broken_connection_is_a_lost_engine_at_once(still: Ends) -> None:
    link = still.link()
    await link.opened(5)
    call = asyncio.create_task(link.call("never"))
    await until(lambda: still.engine.calls)
    still.engine.go_silent()
    still.engine.server.close()
    await until(lambda: still.gone)
    assert still.gone == ["its connection broke"]
    with pytest.raises(EngineLost, match="broke"):
        await call


async def test_a_peer_that_was_held_up_is_told_that_its_legs_are_gone(still: Ends) -> None:
    socket = still.raw(still.keys)
    await socket.send_multipart(pack(Kind.HELLO))
    await receive(socket)
    await advance(still, PEER_TIMEOUT_S + 1.0)
    kinds = [await receive(socket)]
    while kinds[-1][0] is not Kind.GONE:
        kinds.append(await receive(socket))
    assert "dropped your legs" in kinds[-1][1].reason


async def test_who_comes_after_the_end_is_told(ends: Ends) -> None:
    await ends.engine.server.leave("the core died")
    with pytest.raises(EngineLost, match="the core died"):
        await ends.link().opened(5)


async def test_a_beat_knows_how_late_it_came() -> None:
    class Late(FakeClock):
        """Each sleep lasts two seconds longer than asked for: the machine stood still."""

        async def sleep(self, duration_s: float) -> None:
            self._now_s += duration_s + 2.0

    beat = beats(Late(), 0.5)
    assert [await anext(beat) for _ in range(2)] == [2.0, 2.0]


async def test_who_was_held_up_itself_blames_nobody(still: Ends) -> None:
    link = still.link()
    await link.opened(5)
    assert isinstance(still.clock, FakeClock)
    still.clock.jump(5 * PEER_TIMEOUT_S)
    await advance(still, 1.0)
    assert (still.gone, still.engine.lost_peers) == ([], [])


async def test_an_idle_link_keeps_both_ends_alive(still: Ends) -> None:
    await still.link().opened(5)
    for _ in range(int(3 * PEER_TIMEOUT_S)):
        await advance(still, 1.0)
    assert (still.gone, still.engine.lost_peers) == ([], [])


async def test_an_address_where_nobody_listens(ends: Ends) -> None:
    ends.engine.server.address = "tcp://127.0.0.1:1"
    with pytest.raises(EngineLost, match="no answer"):
        await ends.link().opened(0.1)
