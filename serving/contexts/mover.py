"""Carries out moves: copies full blocks ahead, then asks the source to hand off.

Whatever fails on the way leaves the next best one: no copy ahead, the handoff carries all blocks; no handoff, the
token log is replayed. The context itself is never in danger: it stays on its engine until that has handed it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

from vllm.v1.serial_utils import MsgpackEncoder

from serving.clock import Clock
from serving.contexts.engine_set import Engine, EngineSet
from serving.contexts.legs import Kv, bytes_carried, copy_request
from serving.contexts.moves import Move, Stage, copies_on
from serving.contexts.running import Running
from serving.engine.messages import Add, HandOff
from serving.errors import EngineLost
from serving.metrics import GatewayMetrics

logger = logging.getLogger(__name__)

COPY_MARK = "+"
COPY_TIMEOUT_S = 30.0

Failpoint = Callable[[str], None]
"""Called with the name of a seam as it is passed. Tests crash or stop an engine there; otherwise it does nothing."""


def no_failpoint(_seam: str) -> None:
    return None


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
        # Copies that share a link make each other slow, and a slow copy leaves a long tail.
        self._turn = asyncio.Semaphore(moves_at_once)
        self._copies: dict[str, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)

    async def hand_off(self, running: Running, move: Move, source: Engine, *, precopy: bool) -> HandOff:
        """Let the context's leg end at its next token, its blocks mostly copied by then.

        Raises:
            EngineLost: when the source does not answer. Its loss will move the context.
        """
        leg_id = running.context.leg_id
        async with self._turn:
            if precopy and running.is_on(leg_id, move):
                await self._copy_ahead(running, move, source)
            if not running.is_on(leg_id, move):
                return HandOff.GONE
            running.handing_off = True
            self._reach("before_hand_off")
            answers: dict[str, str] = await source.link.call("hand_off", [leg_id])
            return HandOff(answers[leg_id])

    async def _copy_ahead(self, running: Running, move: Move, source: Engine) -> None:
        """Copy full blocks to the destination until only a tail is left, or copying does not pay."""
        leg_id, stages = running.context.leg_id, list[Stage]()
        destination = self._engines.get(move.destination)
        while destination is not None and copies_on(
            running.context.num_tokens, stages, block_size_tokens=source.replica.info.block_size_tokens
        ):
            started_s = self._clock.now_s()
            try:
                tokens = await self._copy(
                    running, source, destination, beyond_tokens=stages[-1].tokens if stages else 0
                )
            except (EngineLost, TimeoutError, RuntimeError) as error:
                logger.warning("copying %s ahead: %s; its handoff carries the rest", leg_id, error)
                return
            if tokens is None or not running.is_on(leg_id, move):
                return
            stages.append(Stage(tokens=tokens, took_s=self._clock.now_s() - started_s))
            destination = self._engines.get(move.destination)

    async def _copy(self, running: Running, source: Engine, destination: Engine, *, beyond_tokens: int) -> int | None:
        """One stage; returns the tokens that the destination has then, None when the source has no more to lend."""
        context = running.context
        copy_id = f"{context.leg_id}{COPY_MARK}{next(self._numbers)}"
        kv: Kv | None = await source.link.call("lend", context.leg_id, copy_id, beyond_tokens)
        if kv is None:
            return None
        request = copy_request(running.request, _token_ids(running), kv, copy_id)
        done = self._copies[copy_id] = asyncio.get_running_loop().create_future()
        destination.begin(copy_id, prefill_tokens=0, num_tokens=kv["remote_num_tokens"] - beyond_tokens)
        self._metrics.move_bytes.inc(bytes_carried(destination.replica.info, kv, beyond_tokens=beyond_tokens))
        try:
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
        done = self._copies.get(leg_id)
        if done is not None and not done.done():
            done.set_result(None)

    def lost(self, engine: Engine, reason: str) -> None:
        """Copies to a lost engine fail at once."""
        for copy_id in engine.legs & self._copies.keys():
            if not self._copies[copy_id].done():
                self._copies[copy_id].set_exception(EngineLost(reason))


def _token_ids(running: Running) -> list[int]:
    assert running.request.prompt_token_ids is not None
    return [*running.request.prompt_token_ids, *running.context.output_token_ids]
