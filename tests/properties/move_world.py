"""A gateway's pool client over engines in memory, at a virtual time, with a ledger of what must come of it.

Real: PoolClient and all beneath it, the channel, the engine host. In memory: the wire, the engine cores, time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
import zmq.asyncio
from prometheus_client import CollectorRegistry
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, FinishReason

from serving.contexts.mover import COPY_MARK
from serving.contexts.pool_client import PoolClient
from serving.engine import channel, host
from serving.engine.channel import ChannelKeys
from serving.engine.host import EngineHost
from serving.engine.messages import HandOff
from serving.errors import EngineLost
from serving.metrics import GatewayMetrics
from serving.router.policy import choose_decode
from serving.types import ClusterView, MoveReason, PoolRole, Replica, ReplicaState
from tests.fakes import engine_info
from tests.properties.memory_blocks import BLOCK_SIZE_TOKENS, stream
from tests.properties.memory_core import NUM_BLOCKS, MemoryCore, QuietMeter
from tests.properties.memory_wire import Connection, OpenDoor, Way, Wire
from tests.properties.move_ledger import Asked, Ledger
from tests.properties.virtual_loop import LoopClock, VirtualLoop

ENGINE_WAIT_S = 3.0
DISAGGREGATE_FROM_TOKENS = 12
SLICE_S = 0.25
STEP_S = 0.01
LABELS = {"model_name": "m", "gateway": "g"}
ROLES = {"p": PoolRole.PREFILL, "d": PoolRole.DECODE, "m": PoolRole.MIXED}
OF_THE_CLIENT = ("PoolClient.", "Mover.", "Placer.", "Evacuation.")
MOVES = ("PoolClient.move", "PoolClient._carry")
"""Whoever wished for a move judges its errors."""


@dataclass(slots=True)
class Node:
    """One engine: its core and its host, what the controller says of it, and whether its process still runs."""

    name: str
    core: MemoryCore
    host: EngineHost
    state: ReplicaState = ReplicaState.READY
    leaves_at_s: float | None = None
    shown: bool = True
    runs: bool = True

    @property
    def lives(self) -> bool:
        return self.runs and self.core.alive

    @property
    def replica(self) -> Replica:
        role = ROLES[self.name[0]]
        return Replica(
            replica_id=self.name,
            pool=role.value,
            role=role,
            state=self.state,
            address=self.host.address,
            node_id="node",
            pid=1,
            info=self.host.info,
            leaves_at_s=self.leaves_at_s,
        )


class World:
    """Actions come from a test; after each, `check` holds."""

    def __init__(self) -> None:
        self.exchange: dict[str, MemoryCore] = {}
        self.ledger = Ledger(self.exchange)
        self.loop, self.wire = VirtualLoop(), Wire(self.ledger)
        self.nodes: dict[str, Node] = {}
        self.moves: list[asyncio.Task[HandOff]] = []
        self._failures: list[BaseException] = []
        self.client_tasks: set[asyncio.Task[Any]] = set()
        self._views: asyncio.Queue[ClusterView] = asyncio.Queue()
        self._servable_s = self.loop.time()
        self._version = 0
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(zmq.asyncio, "Context", self.wire.context)
        self._patch.setattr(channel, "AsyncioAuthenticator", OpenDoor)
        self._patch.setattr(host, "local_processes", lambda core: [core] if core.alive else [])
        self._patch.setattr(host, "sample", lambda core: (core.cpu_s, not core.stalled))
        self._patch.setattr(host, "child_runs", lambda _cores: False)
        self.loop.set_task_factory(self._make_task)
        self.keys, self.clock = ChannelKeys.generate(), LoopClock(self.loop)
        self.registry = CollectorRegistry()
        self.client = PoolClient(
            keys=self.keys,
            clock=self.clock,
            metrics=GatewayMetrics(self.registry, model_name="m", gateway="g"),
            disaggregate_from_tokens=DISAGGREGATE_FROM_TOKENS,
            engine_wait_s=ENGINE_WAIT_S,
        )
        self._pumps = [self.loop.create_task(work) for work in (self._read(), self._follow())]

    # ---- watching

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **how: Any) -> Any:
        task = asyncio.Task(work, loop=loop, **how)
        name = getattr(work, "__qualname__", "")
        if name.startswith(OF_THE_CLIENT) and name not in MOVES:
            self.client_tasks.add(task)
            task.add_done_callback(self._client_task_ended)
        return task

    def _client_task_ended(self, task: asyncio.Task[Any]) -> None:
        self.client_tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _read(self) -> None:
        """What AsyncLLM would read, checked token by token."""
        while True:
            for output in (await self.client.get_output_async()).outputs:
                asked = self.ledger.asked[output.request_id]
                asked.take(output)
                if asked.end is FinishReason.ERROR:
                    waited_s = self.loop.time() - self._servable_s
                    assert waited_s >= ENGINE_WAIT_S - SLICE_S, f"failed after {waited_s} s without an engine"

    async def _follow(self) -> None:
        while True:
            await self.client.follow(await self._views.get())

    def check(self) -> None:
        """What holds at any time."""
        for pump in self._pumps:
            if pump.done():
                pump.result()
        for error in self._failures:
            raise error
        if choose_decode(0, self.client.engines.candidates()) is not None:
            self._servable_s = self.loop.time()
        self._forgive()
        self._check_legs()
        for move in self.moves:
            if move.done() and move.exception() is not None:
                assert isinstance(move.exception(), EngineLost | RuntimeError), move.exception()
                assert self.ledger.harmed
        assert self.client.in_flight == self.metric("requests_in_flight")

    def check_left(self, name: str) -> None:
        """Its deadline has passed: no context is there that had anywhere to go."""
        if choose_decode(0, self.client.engines.candidates()) is not None and not self.ledger.harmed:
            left = [context for context in self.client.contexts() if context["replica"] == name]
            assert not left, f"{name} should have been left by {left}"

    def _forgive(self) -> None:
        """Note what only a lease frees: a client releases nothing at an engine that it takes for dead, and it needs
        another engine to notify one through."""
        for node in (node for node in self.nodes.values() if node.lives):
            engine = self.client.engines.get(node.name)
            if engine is None or engine.stalled or len(self.client.engines.all()) < 2:
                self.ledger.unowed |= node.core.kept.keys()

    def _check_legs(self) -> None:
        """No engine that nobody harmed goes on with a leg that its context has left."""
        current = {f"{context['context']}#{context['leg']}" for context in self.client.contexts() if context["replica"]}
        for node in self.nodes.values():
            node.core.audit()
            if not node.core.inbox and not self.ledger.harmed:
                legs = {one.leg_id for one in node.core.sequences() if COPY_MARK not in one.leg_id and not one.aborted}
                assert legs <= current, f"{node.name} still has {legs - current}"

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"ferry:{name}", LABELS | labels) or 0.0

    # ---- actions

    def start(self, name: str) -> None:
        async def make() -> None:
            core = MemoryCore(name, self.exchange)
            info = engine_info(name, block_size_tokens=BLOCK_SIZE_TOKENS, num_kv_blocks=NUM_BLOCKS, max_num_seqs=8)
            engine = EngineHost(
                replica_id=name,
                core=core,
                info=info,
                host=name,
                keys=self.keys,
                clock=self.clock,
                meter=QuietMeter(),
            )
            self.nodes[name] = Node(name, core, engine)

        self.loop.run(make())
        self.show()

    def show(self) -> None:
        """Let the client see the cluster as it is said to be."""
        self._version += 1
        replicas = tuple(node.replica for node in self.nodes.values() if node.shown)
        self._views.put_nowait(ClusterView(version=self._version, now_s=self.loop.time(), replicas=replicas))
        self.loop.settle()

    def ask(self, prompt: list[int], *, max_tokens: int, stop_at: int | None) -> None:
        request_id = f"r{len(self.ledger.asked)}"
        expected = stream(prompt, max_tokens)
        params = SamplingParams(max_tokens=max_tokens)
        if stop_at is not None and stop_at < max_tokens:
            params.stop_token_ids = expected[stop_at : stop_at + 1]
            expected = expected[: stop_at + 1]
        self.ledger.asked[request_id] = Asked(expected)
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.loop.run(self.client.add_request_async(request))

    def abort(self, request_id: str) -> None:
        if self.ledger.asked[request_id].over:
            return
        self.loop.run_until_complete(self.client.abort_requests_async([request_id]))
        self.ledger.asked[request_id].aborted = True
        self.loop.settle()

    def move(self, request_id: str, destination: str | None, *, carry_kv: bool, precopy: bool) -> None:
        wish = self.client.move(
            request_id, reason=MoveReason.REBALANCE, destination=destination, carry_kv=carry_kv, precopy=precopy
        )
        self.moves.append(self.loop.create_task(wish))
        self.loop.settle()

    def step(self, name: str, *, pulls: bool = True, relay: bool = True) -> None:
        """One step of an engine; without `relay`, what it says stays between its core and its host."""
        core = self.nodes[name].core
        for half in (core.read, lambda: core.compute(pulls=pulls)):
            half()
            if relay:
                core.relay()
                self.loop.settle()
        if core.alive and core.over:
            self.crash(name)
        self.loop.advance(STEP_S)

    def step_all(self, *, pulls: bool = True) -> None:
        for name in self.nodes:
            self.step(name, pulls=pulls)

    def advance(self, duration_s: float) -> None:
        """Let time pass, with a look at every slice of it."""
        end_s = self.loop.time() + duration_s
        while (left_s := end_s - self.loop.time()) > 0:
            self.loop.advance(min(SLICE_S, left_s))
            self.check()

    def declare(self, state: ReplicaState, *names: str, deadline_s: float | None = None) -> None:
        """The controller says so of these engines, and that they will be gone by then."""
        for name in names:
            self.nodes[name].state = state
            self.nodes[name].leaves_at_s = None if deadline_s is None else self.loop.time() + deadline_s
        self.show()

    def kill(self, name: str) -> None:
        """The process and its machine are gone without a word."""
        node = self.nodes[name]
        self.ledger.lost_with(node.core)
        node.runs = node.shown = False
        node.core.die()
        self.wire.unplug(node.host.address)
        self.loop.settle()

    def crash(self, name: str) -> None:
        """The core ends; its host says so."""
        self.ledger.lost_with(self.nodes[name].core)
        self.nodes[name].core.crash()
        self.nodes[name].shown = False
        self.loop.settle()

    def terminate(self, name: str) -> None:
        """The core is told to end."""
        self.ledger.harmed = True
        self.nodes[name].core.terminate()
        self.loop.settle()

    def cut(self, name: str) -> None:
        """The connection breaks; both ends live."""
        self.ledger.harmed = True
        for connection in self.connections(name):
            connection.break_down()
        self.loop.settle()

    def stall(self, name: str, *, stalled: bool) -> None:
        self.ledger.harmed = True
        self.nodes[name].core.stalled = stalled
        self.loop.settle()

    def hold(self, name: str, *, to_engine: bool) -> Way | None:
        """Let nothing more arrive there until the way is let go; a silent engine is soon a lost one."""
        self.ledger.harmed = True
        way = self.way(name, to_engine=to_engine)
        if way is not None:
            way.held = True
        return way

    def way(self, name: str, *, to_engine: bool) -> Way | None:
        """The latest connection's; None when there is none."""
        ways = [c.to_engine if to_engine else c.to_client for c in self.connections(name)]
        return ways[-1] if ways else None

    def connections(self, name: str) -> list[Connection]:
        return self.wire.to(self.nodes[name].host.address)

    # ---- the end

    def finish(self) -> None:
        """Harm nobody any more: then everything comes to its end, and nothing is left anywhere."""
        for node in self.nodes.values():
            if node.lives and node.core.stopping:
                self.crash(node.name)
        for node in self.nodes.values():
            node.core.stalled, node.state, node.shown = False, ReplicaState.READY, node.lives
            node.leaves_at_s = None
            for connection in self.connections(node.name) if node.lives else ():
                connection.to_engine.let_go()
                connection.to_client.let_go()
        self.start("d-last")
        self._step_until(lambda: all(asked.over for asked in self.ledger.asked.values()), limit_s=60.0)
        self._step_until(lambda: all(move.done() for move in self.moves), limit_s=15.0)
        self._step_until(lambda: not self.client_tasks and self._views.empty(), limit_s=60.0)
        # Engines notice a peer that left them without a word after 10 s.
        for _ in range(24):
            self.step_all()
            self.advance(0.5)
        for node in (node for node in self.nodes.values() if not node.lives):
            self.ledger.lost_with(node.core)
            for message in (message for c in self.connections(node.name) for message in c.to_engine.waiting):
                self.ledger.lost(message)
        self._check_books()
        self._check_engines()

    def _step_until(self, condition: Any, *, limit_s: float) -> None:
        end_s = self.loop.time() + limit_s
        while not condition():
            assert self.loop.time() < end_s, "it does not come to its end"
            self.step_all()
            self.advance(0.1)

    def _check_books(self) -> None:
        assert self.client.in_flight == 0 and self.client.contexts() == []
        assert not self.client_tasks, self.client_tasks
        for engine in self.client.engines.all():
            assert (engine.legs, engine.unanswered) == (set(), {})
        self.ledger.check(self.metric)

    def _check_engines(self) -> None:
        for node in (node for node in self.nodes.values() if node.lives):
            assert node.core.sequences() == [], f"{node.name} still has {node.core.sequences()}"
            owed = node.core.kept.keys() - self.ledger.unowed
            assert not owed, f"{node.name} keeps KV that nobody will pull: {owed}"
            node.core.expire_leases()
            node.core.audit()
            assert node.core.pool.num_free == NUM_BLOCKS
            drained = self.loop.create_task(node.host.drained(0.0))
            self.loop.settle()
            self.step(node.name)
            assert drained.result(), f"{node.name}'s host still counts legs"

    def close(self) -> None:
        """Close the client, then all else."""

        async def end() -> None:
            await self.client.close()
            for node in self.nodes.values():
                await node.host.close()
            for task in self._pumps:
                task.cancel()

        try:
            self.loop.run(end())
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.settle()
            for move in self.moves:  # those that the close cut off have told nobody of their errors
                if not move.cancelled():
                    move.exception()
            self.loop.close()
            self._patch.undo()
