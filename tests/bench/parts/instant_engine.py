"""An engine that costs nothing: the real channel, and at every step one message with a token for each request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop
from parts.children import answer_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys, EngineServer
from serving.engine.messages import Add, Frames, Kind, Step, Welcome
from serving.types import EngineInfo, KvIdentity, Load, PoolRole, Replica, ReplicaState

INFO = EngineInfo(
    block_size_tokens=128,
    num_kv_blocks=1 << 20,
    kv_block_bytes=1,
    max_num_seqs=1024,
    max_model_len=4096,
    kv=KvIdentity(engine_id="instant", host="127.0.0.1", port=1, tp_size=1),
)
NAME = "mixed-instant"


@dataclass(slots=True)
class _Leg:
    peer: bytes
    left: int
    made: int = 0


class InstantEngine:
    """`words`: the token ids that every request gets, over and over. `step_s`: how long a step takes."""

    def __init__(self, keys: ChannelKeys, words: tuple[int, ...], step_s: float):
        self._words, self._step_s = words, step_s
        self._legs: dict[str, _Leg] = {}
        self._decoder, self._encoder = MsgpackDecoder(EngineCoreRequest), MsgpackEncoder()
        self.server = EngineServer(
            host="127.0.0.1",
            keys=keys,
            welcome=Welcome(NAME, INFO),
            clock=SystemClock(),
            on_add=self._add,
            on_abort=self._abort,
            on_call=self._call,
            on_peer_lost=self._lose_peer,
            load=self._load,
        )

    def replica(self) -> Replica:
        return Replica(
            replica_id=NAME,
            pool="mixed",
            role=PoolRole.MIXED,
            state=ReplicaState.READY,
            address=self.server.address,
            node_id="here",
            pid=1,
            info=INFO,
        )

    def _load(self) -> Load:
        return Load(running=len(self._legs))

    async def step_forever(self) -> None:
        """Step, one after another; a late step delays the next, as on a real engine."""
        while True:
            await asyncio.sleep(self._step_s)
            await self._step()

    async def _step(self) -> None:
        by_peer: dict[bytes, list[EngineCoreOutput]] = {}
        for leg_id, leg in list(self._legs.items()):
            output = EngineCoreOutput(request_id=leg_id, new_token_ids=[self._words[leg.made % len(self._words)]])
            leg.made, leg.left = leg.made + 1, leg.left - 1
            if leg.left == 0:
                output.finish_reason = FinishReason.LENGTH
                del self._legs[leg_id]
            by_peer.setdefault(leg.peer, []).append(output)
        for peer, outputs in by_peer.items():
            payload = list(self._encoder.encode(EngineCoreOutputs(outputs=outputs)))
            await self.server.send(peer, Kind.STEP, Step(self._load()), payload)

    async def _add(self, peer: bytes, header: Add, payload: Frames) -> None:
        request: EngineCoreRequest = self._decoder.decode(payload)
        assert request.sampling_params is not None and request.sampling_params.max_tokens is not None
        self._legs[header.leg_id] = _Leg(peer, request.sampling_params.max_tokens)

    async def _abort(self, _peer: bytes, leg_ids: list[str]) -> None:
        for leg_id in leg_ids:
            self._legs.pop(leg_id, None)

    async def _call(self, method: str, args: list[object]) -> None:
        raise LookupError(method)

    async def _lose_peer(self, peer: bytes) -> None:
        await self._abort(peer, [leg_id for leg_id, leg in self._legs.items() if leg.peer == peer])


def engine_main(conn: Connection, keys: ChannelKeys, words: tuple[int, ...], step_s: float) -> None:
    """The process: says its Replica, then steps until the pipe closes."""
    uvloop.run(_serve(conn, keys, words, step_s))


async def _serve(conn: Connection, keys: ChannelKeys, words: tuple[int, ...], step_s: float) -> None:
    engine = InstantEngine(keys, words, step_s)
    tasks = [asyncio.create_task(engine.server.serve()), asyncio.create_task(engine.step_forever())]
    conn.send(engine.replica())

    async def nothing(question: object) -> None:
        raise AssertionError(f"an instant engine is asked nothing: {question!r}")

    await answer_all(conn, nothing)
    for task in tasks:
        task.cancel()
    engine.server.close()
