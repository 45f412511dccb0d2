"""PoolClient: vLLM's engine-core client over pools of remote engines.

vLLM's `AsyncLLM` believes it talks to one engine core. Beneath it, each request is a Context that runs one leg after
another on whichever engines the router chooses. The seam is below the detokenizer, so stop strings, logprobs, tool
parsing, usage and stream ids are continuous by construction, whatever moves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serving.clock import Clock
from serving.contexts.context import Context, Verdict, request_id_of
from serving.contexts.engine_set import Engine, EngineSet
from serving.contexts.evacuation import Evacuation
from serving.contexts.legs import Kv
from serving.contexts.move_log import wanted_log
from serving.contexts.mover import Failpoint, Mover, no_failpoint
from serving.contexts.moves import Move, elsewhere
from serving.contexts.placer import Placer
from serving.contexts.running import Running
from serving.engine.channel import ChannelKeys
from serving.engine.messages import Frames, HandOff
from serving.errors import EngineLost
from serving.metrics import GatewayMetrics
from serving.router.policy import choose_decode
from serving.types import ClusterView, MoveReason, ReplicaId, ReplicaState

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOVES_AT_ONCE = 2
PULLED_ANSWERS_WITHIN_S = 1.0
NO_ENGINE = "ferry: no engine"
"""The stop reason that tells a request which found no engine from one that an engine itself failed."""


class PoolClient(EngineCoreClient):
    """The engine-core client of one gateway. One event loop owns it; nothing here is thread-safe."""

    def __init__(
        self,
        *,
        keys: ChannelKeys,
        clock: Clock,
        metrics: GatewayMetrics,
        disaggregate_from_tokens: int,
        engine_wait_s: float,
        moves_at_once: int = MOVES_AT_ONCE,
        failpoint: Failpoint = no_failpoint,
        placer: type[Placer] = Placer,
    ):
        self._clock, self._metrics = clock, metrics
        self._engine_wait_s, self._reach = engine_wait_s, failpoint
        self.engines = EngineSet(
            keys=keys, clock=clock, on_step=self._on_step, on_stalled=self._on_stalled, on_lost=self._on_lost
        )
        self.accepting = True
        self._running: dict[str, Running] = {}
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._decoder, encoder = MsgpackDecoder(EngineCoreOutputs), MsgpackEncoder()
        self._placer = placer(
            self.engines,
            clock=clock,
            metrics=metrics,
            encoder=encoder,
            disaggregate_from_tokens=disaggregate_from_tokens,
            engine_wait_s=engine_wait_s,
            failpoint=failpoint,
        )
        self._mover = Mover(
            self.engines,
            clock=clock,
            metrics=metrics,
            encoder=encoder,
            release=lambda kv: self._spawn(self._placer.release(kv)),
            moves_at_once=moves_at_once,
            failpoint=failpoint,
        )
        self._evacuation = Evacuation(
            self.engines,
            clock=clock,
            running_on=self._running_on,
            move=lambda request_id: self.move(request_id, reason=MoveReason.DRAIN),
            replay=lambda running, source: self._replay(running, source, MoveReason.DRAIN),
            spawn=self._spawn,
        )
        # What AsyncLLM reads of its client beside the methods.
        self.resources = SimpleNamespace(engine_dead=False)
        self.engine_ranks_managed = [0]

    # ---- what AsyncLLM calls

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        params = request.sampling_params
        assert params is not None and request.prompt_token_ids is not None, "only text generation is served"
        context = Context(
            request_id=request.request_id,
            num_prompt_tokens=len(request.prompt_token_ids),
            max_tokens=params.max_tokens or 0,
        )
        running = Running(context, request, self._clock.now_s(), log=wanted_log.get())
        self._running[context.request_id] = running
        self._metrics.in_flight.set(len(self._running))
        self._metrics.prompt_tokens.inc(context.num_prompt_tokens)
        self._place_soon(running, kv=None)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            running = self._running.get(request_id)
            if running is None:
                continue
            engine = self.engines.get(running.context.replica_id)
            if engine is not None:
                engine.end(running.context.leg_id)
                await engine.link.abort([running.context.leg_id])
            self._end(running, "abort")
            self.engines.wake()

    async def get_supported_tasks_async(self) -> tuple[Any, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        return None

    async def is_sleeping_async(self) -> bool:
        return False

    async def reset_prefix_cache_async(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        calls = (e.link.call("reset_prefix_cache", reset_running_requests, reset_connector) for e in self.engines.all())
        return all(await asyncio.gather(*calls))

    def dp_engines_running(self) -> bool:
        return bool(self._running)

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self._tasks:
            task.cancel()

    # ---- the cluster

    async def follow(self, view: ClusterView) -> None:
        """Take a new cluster view. Links to new engines open in their own time."""
        self.accepting = view.accepting
        self.engines.apply(view)
        self._evacuation.follow(view)

    def _running_on(self, replica_id: ReplicaId) -> list[Running]:
        return [running for running in self._running.values() if running.context.replica_id == replica_id]

    async def wait_until_servable(self, timeout_s: float) -> bool:
        """True as soon as some engine can take a new context; False when none can within `timeout_s`."""
        deadline_s = self._clock.now_s() + timeout_s
        while self.accepting and not choose_decode(0, self.engines.candidates()):
            left_s = deadline_s - self._clock.now_s()
            if left_s <= 0:
                return False
            await self.engines.changed(left_s)
        return self.accepting

    def contexts(self) -> list[dict[str, Any]]:
        """The contexts of this gateway, for people."""
        return [
            {
                "context": c.request_id,
                "replica": c.replica_id,
                "leg": c.epoch,
                "prompt_tokens": c.num_prompt_tokens,
                "output_tokens": len(c.output_token_ids),
            }
            for c in (running.context for running in self._running.values())
        ]

    @property
    def in_flight(self) -> int:
        """Contexts that this gateway owns."""
        return len(self._running)

    async def close(self) -> None:
        self.shutdown()
        await self.engines.close()

    # ---- moves

    async def move(
        self,
        request_id: str,
        *,
        reason: MoveReason,
        destination: ReplicaId | None = None,
        carry_kv: bool = True,
        precopy: bool = True,
    ) -> HandOff:
        """Move a running context: copy its full blocks ahead, then cut over at its next token. Without `precopy` the
        cut-over carries all; without `carry_kv`, or where there is no KV, the token log is replayed at once. When the
        caller is cancelled, the move goes on: somebody must take what the source answers.

        Returns what became of the wish; `GONE` also for a context that is between two engines already, that is on the
        destination already, or whose move was called off.

        Raises:
            EngineLost: when its engine does not answer. Its loss will move it.
        """
        running = self._running.get(request_id)
        source = self.engines.get(running.context.replica_id) if running is not None else None
        if running is None or source is None or running.move is not None:
            return HandOff.GONE
        if destination == source.replica.replica_id:
            return HandOff.GONE
        running.ahead, running.at_boundary = None, False
        move = running.move = self._directed(
            Move(reason=reason, source=source.replica.replica_id, destination=destination), running
        )
        if not (carry_kv and running.may_hand_off):
            self._replay(running, source, reason)
            return HandOff.NO_KV
        return await asyncio.shield(self._spawn(self._carry(running, move, source, precopy=precopy)))

    async def _carry(self, running: Running, move: Move, source: Engine, *, precopy: bool) -> HandOff:
        leg_id = running.context.leg_id
        try:
            answer = await self._mover.hand_off(running, move, source, precopy=precopy)
        except BaseException:  # whatever it was, another move may be tried
            self._call_off(running, move)
            raise
        if answer is HandOff.NO_KV and running.is_on(leg_id, move):
            self._replay(running, source, move.reason)
        elif answer is not HandOff.AT_NEXT_TOKEN:
            self._call_off(running, move)
        return answer

    def _directed(self, move: Move, running: Running) -> Move:
        """The move with a destination: where the context would go now, so that its blocks can be copied there ahead."""
        others = elsewhere(move.source, self.engines.candidates())
        if move.destination in [candidate.replica_id for candidate in others]:
            return move
        route = choose_decode(running.context.num_tokens, others)
        return replace(move, destination=None if route is None else route.replica_id, aimed=True)

    def _call_off(self, running: Running, move: Move) -> None:
        if running.move is move:
            running.move, running.handing_off = None, False

    def _replay(self, running: Running, engine: Engine, reason: MoveReason) -> None:
        """Take the context off its engine and start it elsewhere from the token log."""
        leg_id = running.context.leg_id
        self._leave(running, mode="replay", reason=reason)
        engine.end(leg_id)
        self._place_soon(running, kv=None)
        self._spawn(self._abort_leg(engine, leg_id))

    async def _abort_leg(self, engine: Engine, leg_id: str) -> None:
        try:
            await engine.link.abort([leg_id])
        except EngineLost as error:
            logger.warning("aborting %s: %s; a lost engine's legs end with it", leg_id, error)

    def _leave(self, running: Running, *, mode: str, reason: MoveReason) -> None:
        """Take the context off its engine. The placer tells of a handoff, when it knows whether the KV is pulled."""
        running.context.detach()
        running.moved = True
        if mode == "kv":
            running.handed_off = reason
        else:
            running.tell_move(self._metrics, reason=reason, mode=mode, recomputed_tokens=running.context.num_tokens)

    # ---- legs

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _place_soon(self, running: Running, kv: Kv | None) -> None:
        self._spawn(self._place(running, kv))

    async def _place(self, running: Running, kv: Kv | None) -> None:
        """Put a context on its next engine; end it with an error when none comes in time."""
        if not await self._placer.place(running, kv):
            self._fail(running, f"no engine became ready within {self._engine_wait_s:.0f} s")

    # ---- what engines say

    def _on_step(self, engine: Engine, payload: Frames) -> None:
        outputs: EngineCoreOutputs = self._decoder.decode(payload)
        now_s = self._clock.now_s()
        outputs.outputs = [o for o in outputs.outputs if self._take(engine, o, now_s)]
        if outputs.outputs:
            self._outputs.put_nowait(outputs)

    def _take(self, engine: Engine, output: EngineCoreOutput, now_s: float) -> bool:
        """Take one output into its context; True when AsyncLLM should see it, as of an unmoved request."""
        leg_id, kv = output.request_id, output.kv_transfer_params
        ended = output.finish_reason is not None
        engine.unanswered.pop(leg_id, None)
        if ended:
            engine.end(leg_id)
        if output.finish_reason is FinishReason.ABORT:
            self._on_stopping(engine)
            return False
        if self._mover.is_copy(leg_id):
            self._mover.copied(leg_id)
            return False
        running = self._running.get(request_id_of(leg_id))
        self._reach("before_token_log_append")
        verdict = (
            running.context.accept(leg_id, output.new_token_ids, ended=ended, kv_kept=kv is not None)
            if running is not None
            else Verdict.FENCED
        )
        if running is None or verdict is Verdict.FENCED:
            self._metrics.fenced_tokens.inc(len(output.new_token_ids))
            if kv is not None:
                self._spawn(self._placer.release(kv))
            return False
        self._reach("after_append_before_send")
        running.pulls_from = None
        self._time_tokens(running, len(output.new_token_ids), now_s)
        output.request_id, output.kv_transfer_params = running.context.request_id, None
        if running.context.epoch > 1:
            # The first leg has told these already.
            output.prefill_stats = output.new_prompt_logprobs_tensors = None
        if verdict is Verdict.HANDS_OFF:
            output.finish_reason = None
            reason = running.move.reason if running.move is not None else MoveReason.PREFILL_DONE
            self._reach("after_prefill_kv_ready")
            self._leave(running, mode="kv", reason=reason)
            self._place_soon(running, kv)
        elif verdict is Verdict.FINISHED:
            assert output.finish_reason is not None
            self._end(running, str(output.finish_reason))
        return True

    def _on_lost(self, engine: Engine, reason: str) -> None:
        """An engine is gone: its contexts go on elsewhere from the token log."""
        self._mover.lost(engine, reason)
        for running in self._running_on(engine.replica.replica_id):
            self._leave(running, mode="replay", reason=MoveReason.ENGINE_LOST)
            self._place_soon(running, kv=None)
        if engine.replica.state is ReplicaState.DRAINING:
            self._spawn(self._replay_unfinished_pulls_from(engine))
        else:
            self._replay_pulls_from(engine)

    async def _replay_unfinished_pulls_from(self, source: Engine) -> None:
        """A draining engine leaves when its blocks have been pulled: what has not answered yet is about to."""
        await self._clock.sleep(PULLED_ANSWERS_WITHIN_S)
        self._replay_pulls_from(source)

    def _on_stalled(self, engine: Engine) -> None:
        """An engine stands still: its contexts go on elsewhere. Should it move again, it finds them aborted."""
        self._mover.lost(engine, "stands still")
        for running in self._running_on(engine.replica.replica_id):
            self._replay(running, engine, MoveReason.ENGINE_LOST)
        self._replay_pulls_from(engine)

    def _on_stopping(self, engine: Engine) -> None:
        """An engine's core was told to end (SIGTERM, SIGINT) and aborts what it runs: its contexts go on elsewhere. No
        client's abort looks like this: a host forgets a leg before it aborts it. What was handed off can be pulled."""
        if not engine.stopping:
            self.engines.stops(engine)
        self._mover.lost(engine, "its core stops")
        for running in self._running_on(engine.replica.replica_id):
            self._replay(running, engine, MoveReason.ENGINE_LOST)

    def _replay_pulls_from(self, source: Engine) -> None:
        """Nobody will answer pulls from an engine that is gone; NIXL would find out much later, or never."""
        for running in list(self._running.values()):
            engine = self.engines.get(running.context.replica_id)
            if running.pulls_from == source.replica.info.kv.engine_id and engine is not None:
                self._replay(running, engine, MoveReason.ENGINE_LOST)

    def _time_tokens(self, running: Running, count: int, now_s: float) -> None:
        if not count:
            return
        self._metrics.generation_tokens.inc(count)
        first, moved = not running.last_token_s, running.moved
        gap_s = running.arrived(now_s)
        if first:
            self._metrics.ttft_s.observe(gap_s)
        else:
            self._metrics.itl_s.observe(gap_s)
        if moved:
            self._mover.arrived(running.context.request_id)
            if not first:
                self._metrics.move_gap_s.observe(gap_s)
            if running.log is not None:
                running.log.arrived(running.context, gap_s=gap_s)

    def _fail(self, running: Running, reason: str) -> None:
        """End a context with an error output, which vLLM's front end turns into an error event and a proper end."""
        logger.error("request %s failed: %s", running.context.request_id, reason)
        output = EngineCoreOutput(
            request_id=running.context.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
            stop_reason=NO_ENGINE,
        )
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))
        self._end(running, "error")

    def _end(self, running: Running, outcome: str) -> None:
        running.context.abandon()
        self._mover.arrived(running.context.request_id)
        self._running.pop(running.context.request_id, None)
        self._metrics.in_flight.set(len(self._running))
        self._metrics.ended(outcome)
        self._metrics.e2e_s.observe(self._clock.now_s() - running.arrived_s)
