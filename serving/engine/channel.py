"""The channel: ZMQ under the message interface, encrypted and authenticated with CURVE.

An engine listens on its private address; every gateway and the controller connect. Keys are made once per deployment
and travel inside Ray, so a process that Ray did not start cannot speak to an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from serving.clock import Clock
from serving.engine.messages import (
    Call,
    Frames,
    Gone,
    Kind,
    MalformedMessage,
    Reply,
    Step,
    Welcome,
    pack,
    unpack,
)
from serving.errors import EngineLost
from serving.types import EngineInfo, Load

logger = logging.getLogger(__name__)

BEAT_INTERVAL_S = 0.5
# Engines are judged quickly, because streams wait; gateways slowly, because their legs would be thrown away.
PEER_TIMEOUT_S = 10.0
ENGINE_SILENCE_S = 1.75
LOOK_INTERVAL_S = 0.25


async def beats(clock: Clock, interval_s: float) -> AsyncIterator[float]:
    """Beat for ever. Yields by how many seconds the beat came late: whoever was held up itself, or on a machine that
    stood still, has not read what others said meanwhile, and must not take them for silent."""
    while True:
        due_s = clock.now_s() + interval_s
        await clock.sleep(interval_s)
        yield max(0.0, clock.now_s() - due_s)


@dataclass(frozen=True, kw_only=True)
class ChannelKeys:
    """CURVE keys of one deployment, Z85. Engines hold the server pair; gateways and the controller the client pair."""

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def derived_from(cls, secret: str) -> ChannelKeys:
        """The same keys for the same secret: replicas of one deployment that a rolling update starts must be able to
        talk to those that it has not replaced yet. HKDF's expand step (RFC 5869 §2.3), one block per end."""
        server_secret, client_secret = (
            z85.encode(hmac.digest(secret.encode(), b"ferry engine channel, " + end + b"\x01", "sha256"))
            for end in (b"server", b"client")
        )
        return cls(
            server_public=zmq.curve_public(server_secret),
            server_secret=server_secret,
            client_public=zmq.curve_public(client_secret),
            client_secret=client_secret,
        )

    @classmethod
    def generate(cls) -> ChannelKeys:
        return cls.derived_from(secrets.token_urlsafe(32))


class EngineServer:
    """The engine's end. Its owner feeds it outputs; it calls the owner back for what gateways ask.

    `on_add(peer, header, payload)`, `on_abort(peer, leg_ids)`, `on_call(method, args)`, `on_peer_lost(peer)`.
    """

    def __init__(
        self,
        *,
        host: str,
        keys: ChannelKeys,
        welcome: Welcome,
        clock: Clock,
        on_add: Callable[[bytes, Any, Frames], Awaitable[None]],
        on_abort: Callable[[bytes, list[str]], Awaitable[None]],
        on_call: Callable[[str, list[Any]], Awaitable[Any]],
        on_peer_lost: Callable[[bytes], Awaitable[None]],
        load: Callable[[], Load],
    ):
        self._welcome, self._clock, self._load = welcome, clock, load
        self._on_add, self._on_abort, self._on_call, self._on_peer_lost = on_add, on_abort, on_call, on_peer_lost
        self._last_heard_s: dict[bytes, float] = {}
        self._gone: Gone | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._context = zmq.asyncio.Context()
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_OnlyClient(keys.client_public))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = keys.server_public, keys.server_secret
        self._socket.linger, self._socket.sndhwm, self._socket.rcvhwm = 0, 0, 0
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = f"tcp://{host}:{port}"

    @property
    def peers(self) -> list[bytes]:
        """Gateways and controllers that are connected now."""
        return list(self._last_heard_s)

    async def serve(self) -> None:
        """Read messages until cancelled."""
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                peer, *frames = await self._socket.recv_multipart()
                try:
                    await self._handle(peer, *unpack(frames))
                except MalformedMessage as error:
                    logger.warning("dropped a malformed message of peer %s: %s", peer.hex(), error)
        finally:
            beat.cancel()

    async def _handle(self, peer: bytes, kind: Kind, header: Any, payload: Frames) -> None:
        self._last_heard_s[peer] = self._clock.now_s()
        match kind:
            case Kind.ADD:
                await self._on_add(peer, header, payload)
            case Kind.ABORT:
                await self._on_abort(peer, header)
            case Kind.CALL:
                task = asyncio.create_task(self._answer(peer, header))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
            case Kind.HELLO if self._gone is not None:
                await self.send(peer, Kind.GONE, self._gone)
            case Kind.HELLO:
                await self.send(peer, Kind.WELCOME, self._welcome)
                await self.send(peer, Kind.LOAD, Step(self._load()))
            case Kind.BYE:
                await self._lose(peer)
            case Kind.PING:
                pass
            case _:
                raise MalformedMessage(f"{kind.name} is not for engines")

    async def _answer(self, peer: bytes, call: Call) -> None:
        try:
            reply = Reply(call.call_id, await self._on_call(call.method, call.args))
        except Exception as error:  # every failure is the caller's to judge; it travels back whole
            logger.exception("call %s failed", call.method)
            reply = Reply(call.call_id, error=f"{type(error).__name__}: {error}")
        await self.send(peer, Kind.REPLY, reply)

    async def send(self, peer: bytes, kind: Kind, header: Any, payload: Frames | tuple[Any, ...] = ()) -> None:
        """Send one message. To a peer that left, nothing is sent and nothing is raised: it is ROUTER's rule."""
        await self._socket.send_multipart([peer, *pack(kind, header, payload)], copy=False)

    async def broadcast(self, kind: Kind, header: Any) -> None:
        """Send one message to all that are connected."""
        for peer in self.peers:
            await self.send(peer, kind, header)

    async def leave(self, reason: str) -> None:
        """Tell all peers, and whoever still comes, that nothing more will come from here."""
        self._gone = Gone(reason)
        await self.broadcast(Kind.GONE, self._gone)

    async def _beat(self) -> None:
        async for late_s in beats(self._clock, BEAT_INTERVAL_S):
            self._last_heard_s = {peer: heard_s + late_s for peer, heard_s in self._last_heard_s.items()}
            oldest_s = self._clock.now_s() - PEER_TIMEOUT_S
            for peer in [p for p, heard_s in self._last_heard_s.items() if heard_s < oldest_s]:
                await self._lose(peer)
                # It may only have been held up. Then it must know that its legs are no more.
                await self.send(
                    peer, Kind.GONE, Gone(f"heard nothing for {PEER_TIMEOUT_S:.0f} s and dropped your legs")
                )
            if self._gone is None:
                await self.broadcast_load()

    async def broadcast_load(self) -> None:
        await self.broadcast(Kind.LOAD, Step(self._load()))

    async def _lose(self, peer: bytes) -> None:
        if self._last_heard_s.pop(peer, None) is not None:
            await self._on_peer_lost(peer)

    def close(self) -> None:
        self._authenticator.stop()
        self._context.destroy(linger=200)


class _OnlyClient:
    """Accepts the deployment's client key and no other."""

    def __init__(self, client_public: bytes):
        self._client_public = client_public

    def callback(self, domain: str, key: bytes) -> bool:
        """pyzmq's hook; `key` is the peer's public key in Z85."""
        return key == self._client_public


class EngineLink:
    """A gateway's end of the channel to one engine.

    `on_step(load, payload)` runs for each engine step and each load report; `on_gone(reason)` once, when the engine
    says so, its connection breaks, or it has been silent for `ENGINE_SILENCE_S`.
    """

    def __init__(
        self,
        *,
        address: str,
        keys: ChannelKeys,
        clock: Clock,
        context: zmq.asyncio.Context,
        on_step: Callable[[Load, Frames], None],
        on_gone: Callable[[str], None],
    ):
        self._clock, self._on_step, self._on_gone = clock, on_step, on_gone
        self.info: EngineInfo | None = None
        self.load = Load()
        self._settled = asyncio.Event()
        """Set once the engine has welcomed this end, or is lost."""
        self._lost: str | None = None
        self._call_ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._last_heard_s = clock.now_s()
        self._socket = context.socket(zmq.DEALER)
        self._socket.curve_serverkey = keys.server_public
        self._socket.curve_publickey, self._socket.curve_secretkey = keys.client_public, keys.client_secret
        self._socket.linger, self._socket.sndhwm, self._socket.rcvhwm = 0, 0, 0
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)
        self._tasks = [asyncio.create_task(work) for work in (self._read(), self._beat(), self._watch_connection())]

    async def opened(self, timeout_s: float) -> EngineInfo:
        """Wait until the engine has said what it is.

        Raises:
            EngineLost: when it does not answer in time, or is lost meanwhile.
        """
        await self._send(Kind.HELLO)
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            raise EngineLost(f"no answer within {timeout_s:.0f} s") from None
        if self.info is None:
            raise EngineLost(self._lost or "closed")
        return self.info

    async def add(self, header: Any, payload: Frames) -> None:
        await self._send(Kind.ADD, header, payload)

    async def abort(self, leg_ids: list[str]) -> None:
        await self._send(Kind.ABORT, leg_ids)

    async def call(self, method: str, *args: Any, timeout_s: float = 30.0) -> Any:
        """Call a method of the engine host.

        Raises:
            EngineLost: when the engine is gone or does not answer in time.
            RuntimeError: with the engine's message when the method failed there.
        """
        call_id = next(self._call_ids)
        reply = self._replies[call_id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(Kind.CALL, Call(call_id, method, list(args)))
            return await asyncio.wait_for(reply, timeout_s)
        except TimeoutError:
            raise EngineLost(f"{method} unanswered for {timeout_s:.0f} s") from None
        finally:
            self._replies.pop(call_id, None)

    async def _send(self, kind: Kind, header: Any = None, payload: Frames | tuple[Any, ...] = ()) -> None:
        if self._lost is not None:
            raise EngineLost(self._lost)
        await self._socket.send_multipart(pack(kind, header, payload), copy=False)

    async def _send_now(self, kind: Kind) -> None:
        """Send or let it be: ZMQ drops the pipe to a peer that fails the handshake, and waits for another forever."""
        with contextlib.suppress(zmq.Again):
            await self._socket.send_multipart(pack(kind), flags=zmq.NOBLOCK, copy=False)

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            try:
                kind, header, payload = unpack(frames)
            except MalformedMessage as error:
                logger.warning("dropped a malformed message of an engine: %s", error)
                continue
            self._last_heard_s = self._clock.now_s()
            match kind:
                case Kind.STEP | Kind.LOAD:
                    self.load = header.load
                    self._on_step(header.load, payload)
                case Kind.REPLY:
                    self._resolve(header)
                case Kind.WELCOME:
                    self.info = header.info
                    self._settled.set()
                case Kind.GONE:
                    self._lose(header.reason)

    def _resolve(self, reply: Reply) -> None:
        future = self._replies.get(reply.call_id)
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(RuntimeError(reply.error))

    async def _beat(self) -> None:
        async for late_s in beats(self._clock, LOOK_INTERVAL_S):
            self._last_heard_s += late_s
            silent_s = self._clock.now_s() - self._last_heard_s
            if self.info is not None and silent_s > ENGINE_SILENCE_S:
                self._lose(f"silent for {silent_s:.1f} s")
            if self._lost is not None:
                return
            await self._send_now(Kind.PING)

    async def _watch_connection(self) -> None:
        """A broken connection is a lost engine, dead or not: what was under way is gone. ZMQ would connect again, but
        as a peer that owns no leg there."""
        await recv_monitor_message(self._monitor)
        self._lose("its connection broke")

    def _lose(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._settled.set()
        self._fail_calls(reason)
        self._on_gone(reason)

    def _fail_calls(self, reason: str) -> None:
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineLost(reason))

    async def close(self) -> None:
        """Say goodbye, so that the engine frees what this peer holds, and close. Again does nothing."""
        if self._socket.closed:
            return
        await self._send_now(Kind.BYE)
        self._lost = self._lost or "closed"
        self._fail_calls(self._lost)
        for task in self._tasks:
            task.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=200)
