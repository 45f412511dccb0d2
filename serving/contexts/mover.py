"""Carries out moves: copies full blocks ahead, then asks the source to hand off.

Whatever fails on the way leaves the next best one: no copy ahead, the handoff carries all blocks; no handoff, the
token log is replayed. The context itself is never in danger: it stays on its engine until that has handed it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.serial_utils import MsgpackEncoder

from serving.clock import Clock
from serving.contexts.engine_set import Engine, EngineSet
from serving.contexts.legs import Kv, bytes_carried, copy_request
from serving.contexts.moves import (
    LATE_AFTER_S,
    Ahead,
    Move,
    Stage,
    copies_on,
    full_tokens,
    lead_s,
    stage_blocks,
    time_to_boundary_s,
    waits_for_boundary,
)
from serving.contexts.running import Running
from serving.contexts.way import Way
from serving.engine.messages import Add, HandOff
from serving.errors import EngineLost
from serving.metrics import GatewayMetrics

logger = logging.getLogger(__name__)

COPY_MARK = "+"
COPY_TIMEOUT_S = 30.0
CUT_OVER_TIMEOUT_S = 5.0
LOOK_INTERVAL_S = 0.002
"""The shortest between two looks at a block that fills up: tokens that came in one burst make a step look like none."""

Failpoint = Callable[[str], None]
"""Called with the name of a seam as it is passed. Tests crash or stop an engine there; otherwise it does nothing."""


def no_failpoint(_seam: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Copy:
    source: Engine
    destination: Engine
    done: asyncio.Future[None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Boundary:
    """When the block that a leg fills is full: at so many tokens of its context. Not awaited beyond `give_up_s`."""

    leg_id: str
    num_tokens: int
    give_up_s: float


@dataclass(frozen=True, slots=True)
class _CutOver:
    """From the handoff until the context has arrived: what it holds of its turn and the way; not for ever."""

    timer: asyncio.TimerHandle
    holds: contextlib.ExitStack


class Mover:
    """The moves of one gateway. `release(kv)` frees blocks that nobody will pull."""

    def __init__(
        self,
        engines: EngineSet,
        *,
        clock: Clock,
        metrics: GatewayMetrics,
        encoder: MsgpackEncoder,
        release: Callable[[Kv], Any],
        moves_at_once: int,
        failpoint: Failpoint,
    ):
        self._engines, self._clock, self._metrics, self._encoder = engines, clock, metrics, encoder
        self._release, self._reach = release, failpoint
        # Copies that share a link make each other slow, and a slow copy leaves a long tail. A move that does not wait
        # for a block to fill up keeps its turn until it has arrived: it may carry much.
        self._turn = asyncio.Semaphore(moves_at_once)
        self._way = Way()
        self._cutting_over: dict[str, _CutOver] = {}
        self._copies: dict[str, _Copy] = {}
        self._numbers = itertools.count(1)

    async def hand_off(self, running: Running, move: Move, source: Engine, *, precopy: bool) -> HandOff:
        """Let the context's leg end at its next token, its blocks mostly copied by then.

        Raises:
            EngineLost: when the source does not answer. Its loss will move the context.
        """
        leg_id, stages = running.context.leg_id, list[Stage]()
        self.arrived(running.context.request_id)  # where it leaves again unanswered, it must not wait for itself
        with contextlib.ExitStack() as holds:
            await self._turn.acquire()
            holds.callback(self._turn.release)
            if precopy:
                await self._copy_ahead(running, move, source, stages)
            waits = self._waits(running, move, source, stages)
            boundary = self._boundary(running, source) if waits else None
            if boundary is not None:
                holds.close()
                await self._until_full(running, move, boundary, lead_s=lead_s(stages))
            self._way.cut_over()
            holds.callback(self._way.over)
            await self._way.clear()
            if boundary is not None:
                await self._until_full(running, move, boundary)
                await self._copy_last_block(running, move, source, stages)
            answer = await self._ask(running, leg_id, move, source)
            if answer is HandOff.AT_NEXT_TOKEN and running.move is move:
                self._hold_until_arrived(running.context.request_id, holds.pop_all())
        return answer

    async def _ask(self, running: Running, leg_id: str, move: Move, source: Engine) -> HandOff:
        if not running.is_on(leg_id, move):
            return HandOff.GONE
        running.handing_off = True
        self._reach("before_hand_off")
        answers: dict[str, str] = await source.link.call("hand_off", [leg_id])
        return HandOff(answers[leg_id])

    def _hold_until_arrived(self, request_id: str, holds: contextlib.ExitStack) -> None:
        timer = asyncio.get_running_loop().call_later(CUT_OVER_TIMEOUT_S, self.arrived, request_id)
        self._cutting_over[request_id] = _CutOver(timer, holds)

    def arrived(self, request_id: str) -> None:
        """The context's next leg has answered, or the context has ended: its move is over."""
        cut_over = self._cutting_over.pop(request_id, None)
        if cut_over is not None:
            cut_over.timer.cancel()
            cut_over.holds.close()

    async def _copy_ahead(self, running: Running, move: Move, source: Engine, stages: list[Stage]) -> None:
        """Copy full blocks to the destination until only a tail is left, or copying does not pay."""
        block_size_tokens = source.replica.info.block_size_tokens
        going = running.is_on(running.context.leg_id, move)
        while going and copies_on(running.context.num_tokens, stages, block_size_tokens=block_size_tokens):
            await self._way.free()
            with self._way.stage():
                going = await self._stage(running, move, source, stages)

    def _waits(self, running: Running, move: Move, source: Engine, stages: Sequence[Stage]) -> bool:
        destination = self._engines.get(move.destination)
        return destination is not None and waits_for_boundary(
            running.context.num_tokens,
            stages,
            busy=bool(destination.legs),
            step_s=running.step_s,
            block_size_tokens=source.replica.info.block_size_tokens,
        )

    async def _copy_last_block(self, running: Running, move: Move, source: Engine, stages: list[Stage]) -> None:
        """Copy the block that was just filled; the destination need not pull more."""
        running.at_boundary = await self._stage(running, move, source, stages)

    def _boundary(self, running: Running, source: Engine) -> _Boundary:
        num_tokens, block_size_tokens = running.context.num_tokens, source.replica.info.block_size_tokens
        planned_s = time_to_boundary_s(num_tokens, running.step_s, block_size_tokens)
        return _Boundary(
            leg_id=running.context.leg_id,
            num_tokens=full_tokens(num_tokens, block_size_tokens) + block_size_tokens + 1,
            give_up_s=self._clock.now_s() + max(LATE_AFTER_S, 2 * planned_s),
        )

    async def _until_full(self, running: Running, move: Move, boundary: _Boundary, *, lead_s: float = 0.0) -> None:
        """Wait until so long before the block is full, the move is off, or it takes far longer than planned."""
        while running.is_on(boundary.leg_id, move) and self._clock.now_s() < boundary.give_up_s:
            if (boundary.num_tokens - running.context.num_tokens) * running.step_s <= lead_s:
                return
            await self._clock.sleep(max(running.step_s / 4, LOOK_INTERVAL_S))

    async def _stage(self, running: Running, move: Move, source: Engine, stages: list[Stage]) -> bool:
        """Copy the full blocks beyond those of the stages so far; False when no more can follow."""
        leg_id, destination = running.context.leg_id, self._engines.get(move.destination)
        beyond_tokens, most_blocks = stages[-1].tokens if stages else 0, stage_blocks(stages, running.step_s)
        started_s = self._clock.now_s()
        if destination is None or not running.is_on(leg_id, move):
            return False
        try:
            tokens = await self._copy(running, source, destination, beyond_tokens, most_blocks)
        except (EngineLost, TimeoutError, RuntimeError) as error:
            logger.warning("copying %s ahead: %s; its handoff carries the rest", leg_id, error)
            return False
        if tokens is None or not running.is_on(leg_id, move):
            return False
        running.ahead = Ahead(replica_id=destination.replica.replica_id, tokens=tokens)
        block_size_tokens = source.replica.info.block_size_tokens
        stages.append(
            Stage(
                tokens=tokens,
                blocks=(tokens - beyond_tokens) // block_size_tokens,
                took_s=self._clock.now_s() - started_s,
                left_tokens=full_tokens(running.context.num_tokens, block_size_tokens) - tokens,
            )
        )
        return True

    async def _copy(
        self, running: Running, source: Engine, destination: Engine, beyond_tokens: int, most_blocks: int
    ) -> int | None:
        """One stage; returns the tokens that the destination has then, None when the source has no more to lend."""
        context = running.context
        copy_id = f"{context.leg_id}{COPY_MARK}{next(self._numbers)}"
        kv: Kv | None = await source.link.call("lend", context.leg_id, copy_id, beyond_tokens, most_blocks)
        if kv is None:
            return None
        request = copy_request(running.request, _token_ids(running), kv, copy_id)
        done = asyncio.get_running_loop().create_future()
        self._copies[copy_id] = _Copy(source, destination, done)
        destination.begin(copy_id, prefill_tokens=0, num_tokens=kv["remote_num_tokens"] - beyond_tokens)
        self._metrics.move_bytes.inc(bytes_carried(destination.replica.info, kv, beyond_tokens=beyond_tokens))
        try:
            if not (self._answers(source) and self._answers(destination)):
                raise EngineLost("lost while its source lent the blocks")
            await destination.link.add(Add(copy_id, 0, copies=True), list(self._encoder.encode(request)))
            self._reach("during_precopy")
            await asyncio.wait_for(done, COPY_TIMEOUT_S)
        except BaseException:  # cancelled too: the loan must end, and the error goes on to the caller
            self._release(kv)
            with contextlib.suppress(EngineLost):
                await destination.link.abort([copy_id])
            raise
        finally:
            destination.end(copy_id)
            self._copies.pop(copy_id, None)
        return int(kv["remote_num_tokens"])

    def is_copy(self, leg_id: str) -> bool:
        return COPY_MARK in leg_id.rpartition("#")[2]

    def copied(self, leg_id: str) -> None:
        """The destination has answered: the blocks are in its prefix cache."""
        copy = self._copies.get(leg_id)
        if copy is not None and not copy.done.done():
            copy.done.set_result(None)

    def lost(self, engine: Engine, reason: str) -> None:
        """Copies to a lost engine fail at once, and those from it: nobody will answer their pulls."""
        for copy in self._copies.values():
            if (engine is copy.source or engine is copy.destination) and not copy.done.done():
                copy.done.set_exception(EngineLost(reason))

    def _answers(self, engine: Engine) -> bool:
        return self._engines.get(engine.replica.replica_id) is engine and engine.works


def _token_ids(running: Running) -> list[int]:
    assert running.request.prompt_token_ids is not None
    return [*running.request.prompt_token_ids, *running.context.output_token_ids]
