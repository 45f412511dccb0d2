"""Doubles at the seams: a clock that stands still, and engines that speak the real message interface over loopback."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serving.clock import Clock
from serving.engine.channel import ChannelKeys, EngineServer
from serving.engine.messages import LEG_KEY, Add, Frames, HandOff, Kind, Step, Welcome
from serving.types import EngineInfo, KvIdentity, Load, PoolRole, Replica, ReplicaState

WAIT_S = 5.0
BLOCK_SIZE_TOKENS = 16
KV_BLOCK_BYTES = 1000


async def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Let the loop run until `condition` holds; fail when it does not in time."""
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + timeout_s
    while not condition():
        assert clock() < deadline_s, "the awaited did not happen in time"
        await asyncio.sleep(0.002)


async def settle(rounds: int = 20) -> None:
    """Let what is under way on the loop and on loopback come to rest."""
    for _ in range(rounds):
        await asyncio.sleep(0.001)


class FakeClock:
    """Time that moves only when told; sleepers wake in order."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    async def sleep(self, duration_s: float) -> None:
        if duration_s <= 0:
            return await asyncio.sleep(0)
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + duration_s, next(self._order), woken))
        return await woken

    def jump(self, duration_s: float) -> None:
        """The whole machine stands still: when it goes on, every sleeper is late."""
        self._now_s += duration_s

    async def advance(self, duration_s: float) -> None:
        """Move time on, stopping at each sleeper, so that those who sleep again are counted in."""
        end_s = self._now_s + duration_s
        await settle(3)
        while due := [entry for entry in self._sleepers if entry[0] <= end_s]:
            first = min(due, key=lambda entry: entry[:2])
            self._sleepers.remove(first)
            self._now_s = max(self._now_s, first[0])
            if not first[2].done():
                first[2].set_result(None)
            await settle(3)
        self._now_s = end_s
        await settle(3)


def token_stream(prompt: list[int], count: int, start: int = 0) -> list[int]:
    """The tokens that every scripted engine generates after `prompt`: a context may move between any two."""
    return [prompt[0] * 1000 + n for n in range(start, count)]


def request(
    request_id: str, *, prompt_tokens: int, max_tokens: int = 6, first_token: int = 7, **params: Any
) -> EngineCoreRequest:
    """A request as AsyncLLM hands it to its client."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[first_token] * prompt_tokens,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=max_tokens, **params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def engine_info(name: str, **changes: Any) -> EngineInfo:
    fields: dict[str, Any] = {
        "block_size_tokens": BLOCK_SIZE_TOKENS,
        "num_kv_blocks": 1000,
        "kv_block_bytes": KV_BLOCK_BYTES,
        "max_num_seqs": 32,
        "max_model_len": 4096,
        "kv": KvIdentity(engine_id=f"kv-{name}", host="127.0.0.1", port=1, tp_size=1),
    }
    return EngineInfo(**(fields | changes))


def replica(
    name: str,
    role: PoolRole = PoolRole.DECODE,
    *,
    address: str = "tcp://127.0.0.1:1",
    state: ReplicaState = ReplicaState.READY,
) -> Replica:
    return Replica(
        replica_id=name,
        pool=role.value,
        role=role,
        state=state,
        address=address,
        node_id="node",
        pid=1,
        info=engine_info(name),
    )


@dataclass(slots=True)
class Received:
    """One ADD as an engine saw it."""

    peer: bytes
    header: Add
    request: EngineCoreRequest

    @property
    def leg(self) -> dict[str, Any]:
        assert self.request.sampling_params is not None and self.request.sampling_params.extra_args is not None
        leg: dict[str, Any] = self.request.sampling_params.extra_args[LEG_KEY]
        return leg

    @property
    def kv(self) -> dict[str, Any] | None:
        assert self.request.sampling_params is not None
        return (self.request.sampling_params.extra_args or {}).get("kv_transfer_params")


def _aborted(leg_id: str) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=leg_id, new_token_ids=[], finish_reason=FinishReason.ABORT)


class ScriptedEngine:
    """An engine behind a real `EngineServer`. It generates `token_stream`, as fast as its permits allow.

    `held` is the ledger of KV blocks kept for a pull, shared by all engines of a test: (engine id, leg id).
    """

    def __init__(
        self,
        name: str,
        role: PoolRole,
        *,
        keys: ChannelKeys,
        clock: Clock,
        held: set[tuple[str, str]] | None = None,
    ) -> None:
        self.name, self.role = name, role
        self.held = held if held is not None else set()
        self.adds: list[Received] = []
        self.releases: list[Received] = []
        self.aborts: list[str] = []
        self.lost_peers: list[bytes] = []
        self.calls: list[tuple[str, list[Any]]] = []
        self.stop_after: int | None = None
        self.tokens_per_step = 1
        self.load = Load()
        self.warm_error: str | None = None
        self._permits: asyncio.Semaphore | None = None
        self._decoder, self._encoder = MsgpackDecoder(EngineCoreRequest), MsgpackEncoder()
        self.running: dict[str, asyncio.Task[None]] = {}
        self.limits: dict[str, int] = {}
        self.made: dict[str, int] = {}
        self.without_kv = False
        self.stops = False
        self.copies: list[Received] = []
        self.copying = asyncio.Event()
        self.copying.set()
        self.answering = asyncio.Event()
        self.answering.set()
        self._finished: list[asyncio.Task[None]] = []
        self.server = EngineServer(
            host="127.0.0.1",
            keys=keys,
            welcome=Welcome(name, engine_info(name)),
            clock=clock,
            on_add=self._add,
            on_abort=self._abort,
            on_call=self._call,
            on_peer_lost=self._lose_peer,
            load=lambda: self.load,
        )
        self._serving = asyncio.create_task(self.server.serve())

    @property
    def replica(self) -> Replica:
        return replica(self.name, self.role, address=self.server.address)

    def pace(self) -> None:
        """From now on generate only as `allow` permits."""
        self._permits = asyncio.Semaphore(0)

    def allow(self, steps: int) -> None:
        """Let that many steps happen, of whichever legs."""
        assert self._permits is not None
        for _ in range(steps):
            self._permits.release()

    async def die(self) -> None:
        """Say GONE and stop."""
        await self.server.leave("the core died")
        self.go_silent()

    def go_silent(self) -> None:
        """Stop without a word: no outputs, no load reports, no answers."""
        for task in (self._serving, *self._finished):
            task.cancel()

    async def close(self) -> None:
        self.go_silent()
        tasks = [self._serving, *self.running.values(), *self._finished]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        self.server.close()
        for error in (e for e in ended if isinstance(e, Exception)):
            raise error

    async def stop_core(self) -> None:
        """The core gets a SIGTERM: as vLLM's, it aborts what it has, and from now on whatever comes."""
        self.stops = True
        legs = [a for a in (*self.adds, *self.copies) if a.header.leg_id in self.running]
        for task in self.running.values():
            task.cancel()
        for peer in {a.peer for a in legs}:
            await self.emit(peer, *(_aborted(a.header.leg_id) for a in legs if a.peer == peer))

    async def emit(self, peer: bytes, *outputs: EngineCoreOutput) -> None:
        """Send outputs as one engine step."""
        payload = self._encoder.encode(EngineCoreOutputs(outputs=list(outputs)))
        await self.server.send(peer, Kind.STEP, Step(self.load), list(payload))

    async def _add(self, peer: bytes, header: Add, payload: Frames) -> None:
        received = Received(peer, header, self._decoder.decode(payload))
        if received.kv is not None and received.kv.get("do_remote_prefill"):
            assert received.kv["remote_engine_id"] != f"kv-{self.name}", "NIXL cannot pull from or notify itself"
            self.held.discard((received.kv["remote_engine_id"], received.kv["remote_request_id"]))
        if header.releases:
            assert received.request.abort_immediately
            self.releases.append(received)
            return
        if self.stops:
            await self.emit(peer, _aborted(header.leg_id))
            return
        if header.copies:
            self.copies.append(received)
            return self._run(header.leg_id, self._copy(received))
        self.adds.append(received)
        assert header.leg_id not in [a.header.leg_id for a in self.adds[:-1]], "a leg id is used twice"
        self._run(header.leg_id, self._generate(received))

    def _run(self, leg_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self.running[leg_id] = asyncio.create_task(work)
        self._finished.append(task)
        task.add_done_callback(lambda _: self.running.pop(leg_id, None))

    async def _copy(self, received: Received) -> None:
        """Pull, when `copying` allows it, and generate the one token that nobody wants."""
        await self.copying.wait()
        output = EngineCoreOutput(
            request_id=received.header.leg_id, new_token_ids=[0], finish_reason=FinishReason.LENGTH
        )
        await self.emit(received.peer, output)

    async def _generate(self, received: Received) -> None:
        leg, params, prompt = received.leg, received.request.sampling_params, received.request.prompt_token_ids
        assert params is not None and params.max_tokens is not None and prompt is not None
        made = len(leg["output_token_ids"])
        assert leg["output_token_ids"] == token_stream(prompt, made), "the leg does not carry the stream so far"
        stop = self.stop_after if self.stop_after is not None else params.max_tokens
        leg_id = received.header.leg_id
        self.limits[leg_id] = min(params.max_tokens, stop, leg["handoff_at_tokens"] or params.max_tokens)
        while made < self.limits[leg_id]:
            if self._permits is not None:
                await self._permits.acquire()
            end = self.limits[leg_id]
            upto = min(made + self.tokens_per_step, end)
            output = EngineCoreOutput(
                request_id=received.header.leg_id, new_token_ids=token_stream(prompt, upto, start=made)
            )
            made = self.made[leg_id] = upto
            if made == end:
                self._finish(received, output, stopped=made == self.stop_after)
            await self.emit(received.peer, output)

    def _finish(self, received: Received, output: EngineCoreOutput, *, stopped: bool) -> None:
        output.finish_reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        handoff, params = received.leg["handoff_at_tokens"], received.request.sampling_params
        assert params is not None and params.max_tokens is not None
        if not stopped and handoff is not None and handoff < params.max_tokens:
            output.kv_transfer_params = self.keep_kv(received)

    def keep_kv(self, received: Received) -> dict[str, Any]:
        """Keep the blocks of a leg for a pull, as vLLM's NIXL connector describes them."""
        self.held.add((f"kv-{self.name}", received.header.leg_id))
        made = self.made.get(received.header.leg_id, 1)
        # The last token has no KV yet.
        return self._offer(received.header.leg_id, len(received.request.prompt_token_ids or ()) + made - 1)

    def _offer(self, request_id: str, tokens: int) -> dict[str, Any]:
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": f"kv-{self.name}",
            "remote_request_id": request_id,
            "remote_block_ids": [list(range(-(-tokens // BLOCK_SIZE_TOKENS)))],
            "remote_num_tokens": tokens,
        }

    async def _abort(self, _peer: bytes, leg_ids: list[str]) -> None:
        self.aborts += leg_ids
        for leg_id in leg_ids:
            if leg_id in self.running:
                self.running[leg_id].cancel()

    async def _call(self, method: str, args: list[Any]) -> Any:
        self.calls.append((method, args))
        await self.answering.wait()
        if method == "never":
            await asyncio.Event().wait()
        if method == "lend":
            return self._lend(*args)
        if method == "hand_off":
            return {leg_id: str(self._hand_off(leg_id)) for leg_id in args[0]}
        if method != "warm_peers":
            return {"reset_prefix_cache": True}[method]
        if self.warm_error is not None:
            raise RuntimeError(self.warm_error)
        return [0.0 for _ in args[0]]

    def _lend(self, leg_id: str, loan_id: str, beyond_tokens: int, most_blocks: int) -> dict[str, Any] | None:
        """As serving.engine.loan answers."""
        if leg_id not in self.running:
            return None
        prompt = next(a for a in self.adds if a.header.leg_id == leg_id).request.prompt_token_ids or ()
        full_tokens = (len(prompt) + self.made.get(leg_id, 0) - 1) // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS
        lent_tokens = min(full_tokens, beyond_tokens + most_blocks * BLOCK_SIZE_TOKENS)
        if lent_tokens <= beyond_tokens:
            return None
        self.held.add((f"kv-{self.name}", loan_id))
        return self._offer(loan_id, lent_tokens)

    def _hand_off(self, leg_id: str) -> HandOff:
        """As serving.engine.handoff answers: the leg ends with its next token and keeps its blocks."""
        if leg_id not in self.running:
            return HandOff.GONE
        received = next(a for a in self.adds if a.header.leg_id == leg_id)
        params, leg = received.request.sampling_params, received.leg
        next_token = self.made.get(leg_id, len(leg["output_token_ids"])) + 1
        assert params is not None and params.max_tokens is not None
        if next_token >= params.max_tokens:
            return HandOff.ENDING
        if self.without_kv:
            return HandOff.NO_KV
        self.limits[leg_id] = leg["handoff_at_tokens"] = next_token
        return HandOff.AT_NEXT_TOKEN

    async def _lose_peer(self, peer: bytes) -> None:
        self.lost_peers.append(peer)
