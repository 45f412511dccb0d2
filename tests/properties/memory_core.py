"""An engine core in memory: what `EngineHost` needs of vLLM's core client, and a scheduler that obeys vLLM's rules.

It steps only when told. Between two steps it reads its inbox; what it says waits in its outbox until it is relayed.
Handoffs, loans, pulls and releases follow serving.engine.handoff, .loan and .connector, on blocks that are counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder

from serving.engine.messages import LEG_KEY, HandOff, Leg
from tests.properties.memory_blocks import BLOCK_SIZE_TOKENS, BlockPool, blocks_for, kv_of, token_after

NUM_BLOCKS = 40
Kv = dict[str, Any]


class State(Enum):
    WAITING = "waiting"
    PULLING = "pulling"
    RUNNING = "running"


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that the scheduler knows."""

    leg_id: str
    request: EngineCoreRequest
    leg: Leg
    pull: Kv | None
    tokens: list[int]
    limit: int
    state: State = State.WAITING
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    aborted: bool = False

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids or ())


def sequence(request: EngineCoreRequest) -> Sequence:
    params = request.sampling_params
    assert params is not None and params.max_tokens is not None and request.prompt_token_ids is not None
    extra = params.extra_args or {}
    leg, kv = Leg(**extra.get(LEG_KEY, {"output_token_ids": []})), extra.get("kv_transfer_params")
    return Sequence(
        leg_id=request.request_id,
        request=request,
        leg=leg,
        pull=kv if kv is not None and kv.get("do_remote_prefill") else None,
        tokens=[*request.prompt_token_ids, *leg.output_token_ids],
        limit=min(params.max_tokens, leg.handoff_at_tokens or params.max_tokens),
    )


class MemoryCore:
    """`exchange` holds the cores that can reach each other's KV, by NIXL's engine id."""

    def __init__(self, name: str, exchange: dict[str, MemoryCore]) -> None:
        self.kv_engine_id, self._exchange = f"kv-{name}", exchange
        exchange[self.kv_engine_id] = self
        self.core_engine = b""
        self.resources = SimpleNamespace(engine_manager=None)
        self.alive, self.stalled, self.stopping, self.cpu_s = True, False, False, 0.0
        self.inbox: deque[tuple[str, Any, asyncio.Future[Any] | None]] = deque()
        self.refused: list[EngineCoreRequest] = []
        """What came after its death, or after it was told to end."""
        self.outbox: deque[tuple[Any, asyncio.Future[Any] | None]] = deque()
        self._outputs: asyncio.Queue[EngineCoreOutputs | None] = asyncio.Queue()
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self.pool = BlockPool(NUM_BLOCKS)
        self.waiting: list[Sequence] = []
        self.pulling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.kept: dict[str, list[int]] = {}
        """Blocks kept for a pull, by the name under which they are offered; the owner is a leg or a loan."""

    # ---- what EngineHost calls

    async def _send_input_message(self, message: tuple[Any, ...], _engine: bytes) -> None:
        request = self._decoder.decode(list(message[1:]))
        if not self.alive:
            self.refused.append(request)
        self._ensure_alive()
        self.inbox.append(("add", request, None))

    async def abort_requests_async(self, leg_ids: list[str]) -> None:
        if leg_ids and self.alive:
            self.inbox.append(("abort", list(leg_ids), None))

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        self._ensure_alive()
        answer = asyncio.get_running_loop().create_future()
        self.inbox.append((method, args, answer))
        return await answer

    async def get_output_async(self) -> EngineCoreOutputs:
        outputs = await self._outputs.get()
        if outputs is None:
            raise EngineDeadError()
        return outputs

    async def reset_prefix_cache_async(self, *_options: bool) -> bool:
        return True

    def shutdown(self, timeout: float | None = None) -> None:
        self.die()

    def _ensure_alive(self) -> None:
        if not self.alive:
            raise EngineDeadError()

    # ---- what happens to it

    def die(self) -> None:
        """Gone with all its KV. Nobody is told; see `crash`."""
        self.alive = False
        self._exchange.pop(self.kv_engine_id, None)

    def crash(self) -> None:
        """The core ends, and vLLM's client in the host's process sees it."""
        self.die()
        for _, _, answer in self.inbox:
            if answer is not None and not answer.done():
                answer.set_exception(EngineDeadError())
        self._outputs.put_nowait(None)

    def terminate(self) -> None:
        """SIGTERM: as vLLM's, it aborts what it has and refuses whatever comes. It ends when nobody has to pull."""
        self.stopping = True
        for one in [s for s in self.sequences() if not s.aborted]:
            self._say_aborted(one.leg_id)
            self._abort(one)

    @property
    def over(self) -> bool:
        """Told to end, and with nothing left to do."""
        return self.stopping and not (self.sequences() or self.kept or self.outbox)

    def _say_aborted(self, leg_id: str) -> None:
        output = EngineCoreOutput(request_id=leg_id, new_token_ids=[], finish_reason=FinishReason.ABORT)
        self.outbox.append((EngineCoreOutputs(outputs=[output]), None))

    def read(self) -> None:
        """The first half of a step: read the inbox, and answer calls."""
        while self.inbox and self._moves:
            self._read(*self.inbox.popleft())

    def compute(self, *, pulls: bool = True) -> None:
        """The second half: end pulls that are through, schedule, compute."""
        if not self._moves:
            return
        self.cpu_s += 1.0
        if pulls:
            self._end_pulls()
        self._admit()
        outputs = [output for sequence in list(self.running) if (output := self._compute(sequence)) is not None]
        if outputs:
            self.outbox.append((EngineCoreOutputs(outputs=outputs, scheduler_stats=self._stats()), None))

    @property
    def _moves(self) -> bool:
        return self.alive and not self.stalled

    def relay(self) -> None:
        """Let what it said reach its host."""
        while self.outbox and self.alive:
            said, answer = self.outbox.popleft()
            if answer is None:
                self._outputs.put_nowait(said)
            elif not answer.done():
                answer.set_result(said)

    def expire_leases(self) -> None:
        """What was kept for a pull and never pulled is freed after a long time."""
        for name in list(self.kept):
            self._release(name)

    def sequences(self) -> list[Sequence]:
        return [*self.waiting, *self.pulling, *self.running]

    def audit(self) -> None:
        """Every block is owned by those who think they own it."""
        owners = [0] * NUM_BLOCKS
        for numbers in (*(sequence.blocks for sequence in self.sequences()), *self.kept.values()):
            for number in numbers:
                owners[number] += 1
        assert owners == [block.refs for block in self.pool.blocks]
        assert self.pool.num_free == owners.count(0)

    def _stats(self) -> SchedulerStats:
        usage = 1 - self.pool.num_free / NUM_BLOCKS
        waiting = len(self.waiting) + len(self.pulling)
        return SchedulerStats(num_running_reqs=len(self.running), num_waiting_reqs=waiting, kv_cache_usage=usage)

    # ---- the inbox

    def _read(self, kind: str, what: Any, answer: asyncio.Future[Any] | None) -> None:
        match kind:
            case "add" if self.stopping:
                self.refused.append(what)
                self._say_aborted(what.request_id)
            case _ if self.stopping and answer is not None:
                if not answer.done():
                    answer.set_exception(RuntimeError("Server shutting down"))
            case "add" if what.abort_immediately:
                self._notify(sequence(what).pull)
            case "add":
                self.waiting.append(sequence(what))
            case "abort":
                for one in [s for s in self.sequences() if s.leg_id in what]:
                    self._abort(one)
            case "notify":
                self._release(what)
            case "ferry_hand_off":
                self.outbox.append(({leg_id: str(self._hand_off(leg_id)) for leg_id in what[0]}, answer))
            case "ferry_lend":
                self.outbox.append((self._lend(*what), answer))
            case "ferry_holds":
                self.outbox.append((len(self.sequences()) + len(self.kept), answer))
            case _:
                raise LookupError(kind)

    def _abort(self, one: Sequence) -> None:
        if one.state is State.PULLING:
            one.aborted = True  # NIXL writes into its blocks until the pull ends
            return
        if one.state is State.WAITING:
            self._notify(one.pull)
        self._remove(one)

    def _remove(self, one: Sequence) -> None:
        for place in (self.waiting, self.pulling, self.running):
            if one in place:
                place.remove(one)
        self.pool.drop(one.blocks)
        one.blocks = []

    def _running(self, leg_id: str) -> Sequence | None:
        return next((s for s in self.running if s.leg_id == leg_id), None)

    def _hand_off(self, leg_id: str) -> HandOff:
        one = next((s for s in self.sequences() if s.leg_id == leg_id and not s.aborted), None)
        if one is None:
            return HandOff.GONE
        params = one.request.sampling_params
        assert params is not None and params.max_tokens is not None
        next_token = one.num_output_tokens + 1
        if next_token >= params.max_tokens:
            return HandOff.ENDING
        if one.state is not State.RUNNING:
            return HandOff.NO_KV
        one.leg = Leg(output_token_ids=one.leg.output_token_ids, handoff_at_tokens=next_token)
        one.limit = min(one.limit, next_token)
        return HandOff.AT_NEXT_TOKEN

    def _lend(self, leg_id: str, loan_id: str, beyond_tokens: int, most_blocks: int) -> Kv | None:
        one = self._running(leg_id)
        full = min(one.computed, len(one.tokens) - 1) // BLOCK_SIZE_TOKENS if one is not None else 0
        lent = min(full, beyond_tokens // BLOCK_SIZE_TOKENS + most_blocks)
        if one is None or lent * BLOCK_SIZE_TOKENS <= beyond_tokens:
            return None
        self.pool.touch(one.blocks[:lent])
        return self._offer(loan_id, one.blocks[:lent], lent * BLOCK_SIZE_TOKENS)

    def _offer(self, owner_id: str, numbers: list[int], tokens: int) -> Kv:
        name = f"<{owner_id}>"
        assert name not in self.kept
        self.kept[name] = list(numbers)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.kv_engine_id,
            "remote_request_id": name,
            "remote_block_ids": [list(numbers)],
            "remote_num_tokens": tokens,
        }

    def _release(self, name: str) -> None:
        self.pool.drop(self.kept.pop(name, ()))

    def _notify(self, kv: Kv | None) -> None:
        """Tell the engine that keeps these blocks that they are not needed any more."""
        if kv is None:
            return
        assert kv["remote_engine_id"] != self.kv_engine_id, "NIXL cannot notify itself"
        source = self._exchange.get(kv["remote_engine_id"])
        if source is not None:
            source.inbox.append(("notify", kv["remote_request_id"], None))

    # ---- scheduling

    def _admit(self) -> None:
        while self.waiting and self._start(self.waiting[0]):
            one = self.waiting.pop(0)
            (self.pulling if one.state is State.PULLING else self.running).append(one)

    def _start(self, one: Sequence) -> bool:
        found = self.pool.find(one.tokens)
        self.pool.touch(found)
        taken = self.pool.take(blocks_for(len(one.tokens)) - len(found))
        if taken is None:
            self.pool.drop(found)
            return False
        one.blocks, one.computed, one.state = [*found, *taken], len(found) * BLOCK_SIZE_TOKENS, State.RUNNING
        if one.pull is not None:
            assert one.pull["remote_engine_id"] != self.kv_engine_id, "NIXL cannot pull from itself"
            if one.pull["remote_num_tokens"] > one.computed:
                one.state = State.PULLING
            else:
                self._notify(one.pull)
                one.pull = None
        return True

    def _end_pulls(self) -> None:
        """End the pulls that can end. From an engine that is gone nothing comes, and NIXL does not say so."""
        for one in list(self.pulling):
            assert one.pull is not None
            source = self._exchange.get(one.pull["remote_engine_id"])
            if source is not None:
                self._copy_blocks(one, source, one.pull)
                self._notify(one.pull)
            if one.aborted:
                self._remove(one)
            elif source is not None:
                self.pulling.remove(one)
                self.running.append(one)
                one.state, one.pull = State.RUNNING, None
                self.pool.cache(one.blocks, one.tokens[: one.computed])

    def _copy_blocks(self, one: Sequence, source: MemoryCore, kv: Kv) -> None:
        tokens = min(kv["remote_num_tokens"], len(one.tokens) - 1)
        local = one.blocks[one.computed // BLOCK_SIZE_TOKENS : blocks_for(tokens)]
        for here, there in zip(reversed(local), reversed(kv["remote_block_ids"][0]), strict=False):
            self.pool.blocks[here].kv = source.pool.blocks[there].kv
        one.computed = tokens

    def _compute(self, one: Sequence) -> EngineCoreOutput | None:
        """One step of one sequence; None when it has to wait for blocks."""
        missing = blocks_for(len(one.tokens)) - len(one.blocks)
        while one in self.running and (taken := self.pool.take(missing)) is None:
            self._preempt(self.running[-1])
        if one not in self.running:
            return None
        one.blocks += taken or []
        self._fill(one)
        seen = [entry for number in one.blocks for entry in self.pool.blocks[number].kv]
        one.tokens.append(token_after(seen))
        output = EngineCoreOutput(request_id=one.leg_id, new_token_ids=one.tokens[-1:])
        self._end_if_due(one, output)
        return output

    def _preempt(self, one: Sequence) -> None:
        self._remove(one)
        one.state, one.computed = State.WAITING, 0
        self.waiting.insert(0, one)

    def _fill(self, one: Sequence) -> None:
        """Compute the KV of the tokens that have none, from the KV of those that have."""
        seen = [entry for number in one.blocks for entry in self.pool.blocks[number].kv][: one.computed]
        fresh = kv_of(one.tokens[one.computed :], seen)
        for position, entry in enumerate(fresh, start=one.computed):
            block = self.pool.blocks[one.blocks[position // BLOCK_SIZE_TOKENS]]
            block.kv = (*block.kv, entry)
        one.computed = len(one.tokens)
        self.pool.cache(one.blocks, one.tokens)

    def _end_if_due(self, one: Sequence, output: EngineCoreOutput) -> None:
        params = one.request.sampling_params
        assert params is not None and params.max_tokens is not None
        if one.tokens[-1] in (params.stop_token_ids or ()):
            output.finish_reason = FinishReason.STOP
        elif one.num_output_tokens >= one.limit:
            output.finish_reason = FinishReason.LENGTH
            if one.leg.handoff_at_tokens is not None and one.num_output_tokens < params.max_tokens:
                tokens = len(one.tokens) - 1
                held = one.blocks[: blocks_for(tokens)]
                self.pool.touch(held)
                output.kv_transfer_params = self._offer(one.leg_id, held, tokens)
        if output.finish_reason is not None:
            self._remove(one)


class QuietMeter:
    """Stands where the engine's own metrics stood."""

    def add(self, leg_id: str, prompt_tokens: int) -> None:
        return None

    def drop(self, leg_id: str) -> None:
        return None

    def step(self, outputs: EngineCoreOutputs) -> None:
        return None

    def exposition(self) -> str:
        return ""
