"""Puts contexts on engines, one leg after another, wherever the router says; with KV from elsewhere or without."""

from __future__ import annotations

import sys

from vllm.v1.serial_utils import MsgpackEncoder

from serving.clock import Clock
from serving.contexts.context import Context
from serving.contexts.engine_set import Engine, EngineSet
from serving.contexts.legs import Kv, bytes_carried, leg_request, release_request
from serving.contexts.mover import Failpoint
from serving.contexts.moves import suiting
from serving.contexts.running import Running
from serving.engine.messages import Add
from serving.errors import EngineLost
from serving.metrics import GatewayMetrics
from serving.router.policy import Route, choose_decode, choose_first

FIRST_TOKEN = 1


class Placer:
    """The placing of one gateway."""

    def __init__(
        self,
        engines: EngineSet,
        *,
        clock: Clock,
        metrics: GatewayMetrics,
        encoder: MsgpackEncoder,
        disaggregate_from_tokens: int,
        engine_wait_s: float,
        failpoint: Failpoint,
    ):
        self._engines, self._clock, self._metrics, self._encoder = engines, clock, metrics, encoder
        self._disaggregate_from_tokens, self._engine_wait_s = disaggregate_from_tokens, engine_wait_s
        self._reach = failpoint

    async def place(self, running: Running, kv: Kv | None) -> bool:
        """Put a context on its next engine; False when none came within `engine_wait_s`. A context that ends
        meanwhile needs none."""
        found = True
        while not running.context.finished:
            route = await self._route(running)
            if running.context.finished:
                break
            if route is None:
                found = False
                break
            engine = self._engines.get(route.replica_id)
            if engine is None:
                continue
            if kv is not None and not self._can_pull(engine, kv["remote_engine_id"]):
                await self._let_go(kv)
                kv = None
            try:
                await self._begin_leg(running, engine, route, kv)
                return True
            except EngineLost:
                continue
        if kv is not None:
            await self.release(kv)
        return found

    def _can_pull(self, engine: Engine, kv_engine_id: str) -> bool:
        """NIXL cannot pull from itself; back at its source, a context finds what the prefix cache has."""
        return engine.replica.info.kv.engine_id != kv_engine_id and self._has_engine(kv_engine_id)

    def _has_engine(self, kv_engine_id: str) -> bool:
        return any(e.replica.info.kv.engine_id == kv_engine_id and not e.stalled for e in self._engines.all())

    async def _let_go(self, kv: Kv) -> None:
        """Release blocks that will not be pulled, if their engine is there; a lost one's end with it, or its lease."""
        if self._has_engine(kv["remote_engine_id"]):
            await self.release(kv)

    async def _route(self, running: Running) -> Route | None:
        context = running.context
        started = bool(context.output_token_ids)
        deadline_s = self._clock.now_s() + self._engine_wait_s
        while True:
            candidates = suiting(running.move, self._engines.candidates(), started=started)
            route = (
                choose_decode(context.num_tokens, candidates)
                if started
                else choose_first(
                    context.num_prompt_tokens,
                    candidates,
                    disaggregate_from_tokens=self._disaggregate_from_tokens if running.may_hand_off else sys.maxsize,
                )
            )
            left_s = deadline_s - self._clock.now_s()
            if route is not None or left_s <= 0 or context.finished:
                return route
            await self._engines.changed(left_s)

    def _handoff_at_tokens(self, context: Context, route: Route) -> int | None:
        """Output tokens at which the leg to begin hands off by itself; None when it does not."""
        return FIRST_TOKEN if route.hands_off and context.max_tokens > FIRST_TOKEN else None

    async def _begin_leg(self, running: Running, engine: Engine, route: Route, kv: Kv | None) -> None:
        context, ahead = running.context, running.ahead
        if ahead is not None and ahead.replica_id != route.replica_id:
            ahead = None
        ahead_tokens = 0 if ahead is None else ahead.tokens
        short = running.at_boundary and ahead is not None and ahead.leaves_short_tail(context.num_tokens)
        carried = None if short else kv
        running.move, running.handing_off, running.ahead, running.at_boundary = None, False, None, False
        leg_id = context.begin_leg(route.replica_id, handoff_at_tokens=self._handoff_at_tokens(context, route))
        self._reach("after_epoch_bump")
        tail_tokens = context.num_tokens - (ahead_tokens if carried is not kv else 0)
        engine.begin(leg_id, prefill_tokens=0 if carried else tail_tokens, num_tokens=context.num_tokens)
        running.pulls_from = carried["remote_engine_id"] if carried is not None else None
        if carried is not None:
            self._reach("before_pull")
            self._metrics.move_bytes.inc(bytes_carried(engine.replica.info, carried, beyond_tokens=ahead_tokens))
        request = leg_request(running.request, context, carried, max_model_len=engine.replica.info.max_model_len)
        try:
            await engine.link.add(Add(leg_id, context.num_prompt_tokens), list(self._encoder.encode(request)))
        except EngineLost:
            engine.end(leg_id)
            raise
        if carried is not None:
            self._tell_handoff(running, mode="kv", recomputed_tokens=0)
            self._reach("during_pull")
        elif kv is not None:
            self._tell_handoff(running, mode="kv", recomputed_tokens=tail_tokens - 1)
            await self.release(kv)
        else:
            self._tell_handoff(running, mode="replay", recomputed_tokens=context.num_tokens)

    def _tell_handoff(self, running: Running, *, mode: str, recomputed_tokens: int) -> None:
        """If the last leg handed off, tell what became of that. Every other way to leave was told as it happened."""
        reason, running.handed_off = running.handed_off, None
        if reason is not None:
            running.tell_move(self._metrics, reason=reason, mode=mode, recomputed_tokens=recomputed_tokens)

    async def release(self, kv: Kv) -> None:
        """Tell the engine that keeps these blocks that nobody will pull them; by one that is likely to do it soon."""
        others = [e for e in self._engines.all() if e.replica.info.kv.engine_id != kv["remote_engine_id"]]
        if others:
            engine = next((e for e in others if e.works), others[0])
            request = release_request(kv)
            await engine.link.add(Add(request.request_id, 0, releases=True), list(self._encoder.encode(request)))
