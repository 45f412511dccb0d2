"""Moves under every harm in any order: each stream exact, each request ended, each block free in the end."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.types import ReplicaState
from tests.properties.move_world import World

pytestmark = pytest.mark.slow

MAX_ENGINES = 4
MAX_REQUESTS = 6
PICK = st.integers(0, 11)
HARMS = ("kill", "crash", "terminate", "cut", "stall")


class MoveMachine(RuleBasedStateMachine):
    """Picks are numbers: the n-th of those there are, so that an example shrinks and still means something."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.started = 0

    @initialize(
        kinds=st.sampled_from(["dd", "ddd", "pdd", "ppd", "mm", "pm", "pdm"]),
        prompts=st.lists(st.integers(1, 22), min_size=1, max_size=3),
    )
    def start(self, kinds: str, prompts: list[int]) -> None:
        for kind in kinds:
            self.join(kind)
        for prompt in prompts:
            self.a_client_asks(prompt, shared=False, max_tokens=24, stop_at=None)
        self.world.step_all()

    def join(self, kind: str) -> None:
        self.started += 1
        self.world.start(f"{kind}{self.started}")

    # ---- what there is

    def live(self) -> list[str]:
        return [node.name for node in self.world.nodes.values() if node.lives]

    def engine(self, pick: int) -> str:
        return self.live()[pick % len(self.live())]

    def open_requests(self) -> list[str]:
        return [name for name, asked in self.world.ledger.asked.items() if not asked.over]

    def busy_ends(self) -> list[str]:
        """Engines that pull now, or are told to, and those that keep KV for a pull."""
        cores = [(name, self.world.nodes[name].core) for name in self.live()]
        return [name for name, core in cores if core.kept or core.pulling or any(i[0] == "add" for i in core.inbox)]

    def on_legs(self) -> list[str]:
        """Requests that are on an engine now."""
        return [c["context"] for c in self.world.client.contexts() if c["replica"] in self.live()]

    def replica_of(self, request_id: str) -> str:
        return next(c["replica"] for c in self.world.client.contexts() if c["context"] == request_id)

    # ---- rules

    @precondition(lambda self: len(self.live()) < MAX_ENGINES)
    @rule(kind=st.sampled_from("ddmp"))
    def an_engine_joins(self, kind: str) -> None:
        self.join(kind)

    @precondition(lambda self: len(self.world.ledger.asked) < MAX_REQUESTS)
    @rule(
        prompt=st.integers(1, 22),
        shared=st.booleans(),
        max_tokens=st.integers(1, 24),
        stop_at=st.none() | st.integers(0, 20),
    )
    def a_client_asks(self, prompt: int, shared: bool, max_tokens: int, stop_at: int | None) -> None:
        first = 1 if shared else 100 + len(self.world.ledger.asked)
        self.world.ask([first, *range(2, prompt + 1)], max_tokens=max_tokens, stop_at=stop_at)

    @precondition(lambda self: len(self.open_requests()) > 2)
    @rule(pick=PICK)
    def a_client_leaves(self, pick: int) -> None:
        self.world.abort(self.open_requests()[pick % len(self.open_requests())])

    @precondition(lambda self: self.live())
    @rule(pick=PICK, pulls=st.booleans(), relay=st.booleans(), count=st.integers(1, 3))
    def an_engine_steps(self, pick: int, pulls: bool, relay: bool, count: int) -> None:
        name = self.engine(pick)
        for _ in range(count):
            self.world.step(name, pulls=pulls, relay=relay)

    @rule(count=st.integers(1, 4), pulls=st.booleans())
    def all_engines_step(self, count: int, pulls: bool) -> None:
        for _ in range(count):
            self.world.step_all(pulls=pulls)

    @precondition(lambda self: self.live())
    @rule(pick=PICK)
    def an_engine_relays(self, pick: int) -> None:
        self.world.nodes[self.engine(pick)].core.relay()
        self.world.loop.settle()

    @precondition(lambda self: self.on_legs())
    @rule(
        pick=PICK,
        to=st.none() | PICK,
        precopy=st.booleans(),
        steps=st.integers(0, 5),
        pulls=st.booleans(),
        times=st.integers(1, 4),
        harm=st.none() | st.sampled_from(HARMS),
    )
    def a_context_moves(
        self, pick: int, to: int | None, precopy: bool, steps: int, pulls: bool, times: int, harm: str | None
    ) -> None:
        """Perhaps more than once; then `harm` may come to one of those that pull or keep KV."""
        request_id = self.on_legs()[pick % len(self.on_legs())]
        for n in range(times):
            destination = None if to is None or not self.live() else self.engine(to + n)
            self.world.move(request_id, destination, carry_kv=True, precopy=precopy)
            for _ in range(steps):
                self.world.step_all(pulls=pulls)
        if harm is not None and self.busy_ends():
            self.lose(self.busy_ends()[pick % len(self.busy_ends())], harm)

    @precondition(lambda self: self.open_requests() and self.live())
    @rule(
        picks=st.lists(PICK, min_size=2, max_size=4),
        to=st.none() | PICK,
        carry_kv=st.booleans(),
        precopy=st.booleans(),
    )
    def contexts_move_at_once(self, picks: list[int], to: int | None, carry_kv: bool, precopy: bool) -> None:
        for request_id in [self.open_requests()[pick % len(self.open_requests())] for pick in picks]:
            self.world.move(request_id, None if to is None else self.engine(to), carry_kv=carry_kv, precopy=precopy)

    @precondition(lambda self: self.on_legs())
    @rule(pick=PICK, steps=st.integers(1, 3))
    def a_context_is_replayed_while_its_tokens_are_under_way(self, pick: int, steps: int) -> None:
        request_id = self.on_legs()[pick % len(self.on_legs())]
        name = self.replica_of(request_id)
        way = self.world.hold(name, to_engine=False)
        assert way is not None
        for _ in range(steps):
            self.world.step(name)
        self.world.move(request_id, None, carry_kv=False, precopy=False)
        way.let_go()
        self.world.loop.settle()

    @precondition(lambda self: self.on_legs())
    @rule(pick=PICK, out_of_core=st.booleans())
    def a_client_leaves_while_its_handoff_is_under_way(self, pick: int, out_of_core: bool) -> None:
        """Either between core and host, or between host and client."""
        request_id = self.on_legs()[pick % len(self.on_legs())]
        name = self.replica_of(request_id)
        self.world.move(request_id, None, carry_kv=True, precopy=False)
        way = self.world.hold(name, to_engine=False) if out_of_core else None
        self.world.step(name, relay=out_of_core)
        self.world.abort(request_id)
        self.world.step(name)
        if way is not None:
            way.let_go()
        self.world.loop.settle()

    @precondition(lambda self: self.on_legs() and len(self.live()) > 2)
    @rule(pick=PICK, precopy=st.booleans(), at_source=st.booleans(), harm=st.sampled_from((*HARMS, "leave")))
    def a_pull_is_under_way_at_a_loss(self, pick: int, precopy: bool, at_source: bool, harm: str) -> None:
        """Of either end, or of the client; with `precopy` the pull is a copy's, without the next leg's."""
        request_id = self.on_legs()[pick % len(self.on_legs())]
        source = self.replica_of(request_id)
        self.world.move(request_id, None, carry_kv=True, precopy=precopy)
        for _ in range(3):
            self.world.step_all(pulls=False)
        pulling = [name for name in self.live() if self.world.nodes[name].core.pulling]
        if harm == "leave":
            self.world.abort(request_id)
        elif pulling:
            self.lose(source if at_source and source in self.live() else pulling[pick % len(pulling)], harm)

    @precondition(lambda self: self.on_legs())
    @rule(pick=PICK, leaves=st.booleans(), duration_s=st.sampled_from([0.1, 2.0, 4.0]))
    def nothing_serves_during_a_handoff(self, pick: int, leaves: bool, duration_s: float) -> None:
        request_id = self.on_legs()[pick % len(self.on_legs())]
        engines = self.live()
        self.world.declare(ReplicaState.DRAINING, *engines)
        self.world.move(request_id, None, carry_kv=True, precopy=False)
        self.world.step_all()
        self.world.advance(duration_s)
        if leaves:
            self.world.abort(request_id)
        self.world.declare(ReplicaState.READY, *engines)

    @precondition(lambda self: self.live())
    @rule(pick=PICK, state=st.sampled_from([ReplicaState.DRAINING, ReplicaState.READY]))
    def an_engine_drains_or_stays(self, pick: int, state: ReplicaState) -> None:
        self.world.declare(state, self.engine(pick))

    @precondition(lambda self: self.live())
    @rule(pick=PICK, deadline_s=st.sampled_from([0.5, 1.2, 3.0]), passes=st.booleans())
    def an_engine_drains_by_a_deadline(self, pick: int, deadline_s: float, passes: bool) -> None:
        """That passes, or is left to the rules that come."""
        name = self.engine(pick)
        self.world.declare(ReplicaState.DRAINING, name, deadline_s=deadline_s)
        if passes:
            self.world.advance(deadline_s)
            self.world.check_left(name)

    @precondition(lambda self: self.live())
    @rule(pick=PICK, busy=st.booleans(), how=st.sampled_from(HARMS), tell=st.booleans())
    def an_engine_is_lost(self, pick: int, busy: bool, how: str, tell: bool) -> None:
        """With `busy`, an end of a move, if there is one."""
        ends = self.busy_ends() if busy and self.busy_ends() else self.live()
        self.lose(ends[pick % len(ends)], how)
        if tell:
            self.world.show()

    def lose(self, name: str, how: str) -> None:
        match how:
            case "kill":
                self.world.kill(name)
            case "crash":
                self.world.crash(name)
            case "terminate":
                self.world.terminate(name)
            case "cut":
                self.world.cut(name)
            case "stall":
                self.world.stall(name, stalled=True)
                self.world.advance(2.5)

    @precondition(lambda self: any(n.core.stalled for n in self.world.nodes.values()))
    @rule()
    def stalled_engines_wake(self) -> None:
        for name in self.live():
            self.world.stall(name, stalled=False)

    @precondition(lambda self: self.live())
    @rule(pick=PICK, to_engine=st.booleans())
    def a_way_is_slow(self, pick: int, to_engine: bool) -> None:
        self.world.hold(self.engine(pick), to_engine=to_engine)

    @precondition(lambda self: self.live())
    @rule(pick=PICK, to_engine=st.booleans(), count=st.integers(1, 3), all_of_it=st.booleans())
    def a_way_delivers(self, pick: int, to_engine: bool, count: int, all_of_it: bool) -> None:
        way = self.world.way(self.engine(pick), to_engine=to_engine)
        if way is not None and all_of_it:
            way.let_go()
        elif way is not None:
            way.deliver(count)
        self.world.loop.settle()

    @rule(duration_s=st.sampled_from([0.05, 0.3, 1.0, 2.0]))
    def time_passes(self, duration_s: float) -> None:
        self.world.advance(duration_s)

    @invariant()
    def all_is_well(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        failed = sys.exc_info()[0] is not None  # Hypothesis tears down after a failure too; what follows would hide it
        try:
            if not failed:
                self.world.finish()
        finally:
            self.world.close()
        assert failed or not self.world.client_tasks, "tasks of the client outlive it"


MoveMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestMoves = MoveMachine.TestCase
