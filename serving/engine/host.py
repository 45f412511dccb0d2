"""The engine host: relays between one engine core and the gateways that use it.

It owns who asked for which leg, keeps vLLM's own engine metrics, and tells every peer when the core dies. It never
looks at tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serving.clock import Clock
from serving.engine.channel import ChannelKeys, EngineServer, beats
from serving.engine.messages import Add, Frames, Kind, Step, Welcome
from serving.engine.meter import EngineMeter
from serving.engine.processes import child_runs, local_processes, sample
from serving.engine.stall import StallWatch
from serving.types import EngineInfo, Load

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.metrics.stats import SchedulerStats

logger = logging.getLogger(__name__)

DRAIN_POLL_S = 0.1
# Aborts remembered for outputs that were already on their way; a step's worth is enough.
ABORTED_KEPT = 1_024
HOLDS_TIMEOUT_S = 5.0
STALL_LOOK_S = 0.25
STALL_LIMIT_S = 30.0
"""A core that stands still for longer than this is given up."""


class EngineHost:
    """One engine core, opened to many gateways."""

    def __init__(
        self,
        *,
        replica_id: str,
        core: AsyncMPClient,
        info: EngineInfo,
        host: str,
        keys: ChannelKeys,
        clock: Clock,
        meter: EngineMeter,
    ):
        self._core, self._meter, self._clock = core, meter, clock
        self.info = info
        self._owner: dict[str, bytes] = {}
        self._aborted: dict[str, bytes] = {}
        self._load = Load()
        self._decoder, self._encoder = MsgpackDecoder(EngineCoreRequest), MsgpackEncoder()
        self.dead: str | None = None
        self._stall_watch = StallWatch()
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "warm_peers": self._warm_peers,
            "metrics": self._metrics,
            "hand_off": self._hand_off,
            "lend": self._lend,
            "reset_prefix_cache": core.reset_prefix_cache_async,
        }
        self._server = EngineServer(
            host=host,
            keys=keys,
            welcome=Welcome(replica_id, info),
            clock=clock,
            on_add=self._add,
            on_abort=self._abort,
            on_call=self._call,
            on_peer_lost=self._release_peer,
            load=lambda: self._load,
        )
        work = (self._server.serve(), self._relay(), self._watch_for_stalls())
        self._tasks = [asyncio.create_task(one) for one in work]

    @property
    def address(self) -> str:
        return self._server.address

    async def _add(self, peer: bytes, header: Add, payload: Frames) -> None:
        """Pass a request on to the core as it came: the host does not decode prompts."""
        if not header.releases:
            self._owner[header.leg_id] = peer
            if not header.copies:
                self._meter.add(header.leg_id, header.prompt_tokens)
            self._load = _plus_one_waiting(self._load)
        message = (EngineCoreRequestType.ADD.value, *payload)
        await self._core._send_input_message(message, self._core.core_engine)

    async def _abort(self, peer: bytes, leg_ids: list[str]) -> None:
        mine = [leg_id for leg_id in leg_ids if self._owner.get(leg_id) == peer]
        for leg_id in mine:
            self._forget(leg_id)
            self._aborted[leg_id] = peer
        while len(self._aborted) > ABORTED_KEPT:
            self._aborted.pop(next(iter(self._aborted)))
        await self._core.abort_requests_async(mine)

    async def _release_peer(self, peer: bytes) -> None:
        """A gateway is gone: nobody will read its legs, so free their blocks."""
        held = [leg_id for leg_id, owner in self._owner.items() if owner == peer]
        if held:
            logger.warning("peer %s left %d legs; aborting them", peer.hex(), len(held))
            await self._abort(peer, held)

    def _forget(self, leg_id: str) -> None:
        self._owner.pop(leg_id, None)
        self._meter.drop(leg_id)

    async def _call(self, method: str, args: list[Any]) -> Any:
        if method not in self._calls:
            raise LookupError(f"no method {method!r}; there are {', '.join(self._calls)}")
        return await self._calls[method](*args)

    async def _warm_peers(self, peers: list[dict[str, Any]]) -> list[float | None]:
        """Seconds per peer: the slowest worker's; None where any worker failed."""
        per_worker = await self._core.collective_rpc_async("ferry_warm_peers", args=(peers,))
        return [None if None in times else max(times) for times in zip(*per_worker, strict=True)]

    async def _hand_off(self, leg_ids: list[str]) -> dict[str, str]:
        answers: dict[str, str] = await self._core.call_utility_async("ferry_hand_off", leg_ids)
        return answers

    async def _lend(self, leg_id: str, loan_id: str, beyond_tokens: int, most_blocks: int) -> dict[str, Any] | None:
        params: dict[str, Any] | None = await self._core.call_utility_async(
            "ferry_lend", leg_id, loan_id, beyond_tokens, most_blocks
        )
        return params

    async def _metrics(self) -> str:
        return self._meter.exposition()

    async def _relay(self) -> None:
        """Pass each step's outputs to the gateways that own them, one message per gateway."""
        try:
            while True:
                outputs = await self._core.get_output_async()
                self._stall_watch.spoke(self._clock.now_s())
                self._observe(outputs.scheduler_stats)
                self._meter.step(outputs)
                await self._deliver(outputs)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the core is dead, whatever it died of: say so, and let Ray replace the replica
            logger.exception("engine core died")
            await self._die(f"{type(error).__name__}: {error}")

    async def _die(self, reason: str) -> None:
        self.dead = reason
        self._owner.clear()
        await self._server.leave(reason)

    async def _watch_for_stalls(self) -> None:
        """Tell the gateways when the core stands still while they wait for it, and when it answers again."""
        processes = local_processes(self._core)
        async for late_s in beats(self._clock, STALL_LOOK_S):
            now_s = self._clock.now_s()
            if late_s > STALL_LOOK_S:
                self._stall_watch.spoke(now_s)  # this process stood still itself, and judges nobody
            has_work = bool(self._owner and processes)
            samples = [sample(process) for process in processes] if has_work else []
            cpu_s, runnable = sum(cpu_s for cpu_s, _ in samples), any(runnable for _, runnable in samples)
            if not self._stall_watch.stalls(now_s, has_work=has_work, cpu_s=cpu_s, runnable=runnable):
                continue
            if child_runs(processes):
                self._stall_watch.stalls(now_s, has_work=has_work, cpu_s=cpu_s, runnable=True)
                continue
            logger.error("engine core stands still")
            await self._set_stalled(True)
            try:
                # Any utility will do: the core answers it as soon as it moves again.
                await asyncio.wait_for(self._core.call_utility_async("ferry_hand_off", []), STALL_LIMIT_S)
            except TimeoutError:
                return await self._die(f"the engine core stands still for {STALL_LIMIT_S:.0f} s")
            self._stall_watch.spoke(self._clock.now_s())
            await self._set_stalled(False)

    async def _set_stalled(self, stalled: bool) -> None:
        self._load = replace(self._load, stalled=stalled)
        await self._server.broadcast_load()

    def _observe(self, stats: SchedulerStats | None) -> None:
        if stats is not None:
            self._load = Load(
                running=stats.num_running_reqs,
                waiting=stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
                kv_usage=stats.kv_cache_usage,
                stalled=self._load.stalled,
            )

    async def _deliver(self, outputs: EngineCoreOutputs) -> None:
        by_peer: dict[bytes, list[Any]] = {}
        for output in outputs.outputs:
            owner = self._owner.get(output.request_id)
            if owner is None and output.kv_transfer_params is not None:
                # It handed off while its owner aborted it: the owner must know, to release the blocks.
                owner = self._aborted.pop(output.request_id, None)
            if owner is None:
                continue
            by_peer.setdefault(owner, []).append(output)
            if output.finish_reason is not None:
                self._forget(output.request_id)
        for peer, own in by_peer.items():
            step = EngineCoreOutputs(outputs=own, timestamp=outputs.timestamp)
            await self._server.send(peer, Kind.STEP, Step(self._load), self._encoder.encode(step))

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no gateway has a leg here and no other engine has blocks to pull; False when some still have after
        `timeout_s`."""
        deadline_s = self._clock.now_s() + timeout_s
        while self.dead is None and (self._owner or await self._holds()):
            if self._clock.now_s() >= deadline_s:
                return False
            await self._clock.sleep(DRAIN_POLL_S)
        return True

    async def _holds(self) -> bool:
        """Whether the core has requests or keeps blocks; one that stands still may, a dead one has nothing."""
        try:
            return bool(await asyncio.wait_for(self._core.call_utility_async("ferry_holds"), HOLDS_TIMEOUT_S))
        except TimeoutError:
            return True
        except EngineDeadError:
            return False

    async def close(self, timeout_s: float = 5.0) -> None:
        """Tell the gateways, then stop the core."""
        await self._server.leave(self.dead or "stopping")
        for task in self._tasks:
            task.cancel()
        self._server.close()
        self._core.shutdown(timeout=timeout_s)


def _plus_one_waiting(load: Load) -> Load:
    """The load until the scheduler reports again: it has one more request than it knows."""
    return replace(load, waiting=load.waiting + 1)
