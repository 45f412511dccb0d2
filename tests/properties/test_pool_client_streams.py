"""A pool client over engines that come, die and stall in any order: every stream exact, every ledger balanced."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.v1.engine import FinishReason

from tests.fakes import settle, token_stream
from tests.serving.fleet import LONG, SHORT, Fleet

ENGINES = ("p1", "p2", "d1", "d2", "m1")
ASK = st.tuples(st.just("ask"), st.sampled_from([SHORT, LONG]), st.integers(1, 6))
ABORT = st.tuples(st.just("abort"), st.integers(0, 5), st.just(0))
ALLOW = st.tuples(st.just("allow"), st.sampled_from(ENGINES), st.integers(1, 5))
KILL = st.tuples(st.just("kill"), st.sampled_from(ENGINES), st.just(0))
START = st.tuples(st.just("start"), st.sampled_from(ENGINES), st.just(0))
REST = st.tuples(st.just("rest"), st.integers(1, 8), st.just(0))
STEPS = st.lists(st.one_of(ASK, ASK, ALLOW, ALLOW, REST, KILL, START, ABORT), max_size=25)


class Play:
    """Runs the steps on a fleet and keeps the ledger."""

    def __init__(self) -> None:
        self.fleet = Fleet(engine_wait_s=5.0)
        self.asked: dict[str, int] = {}
        self.aborted: set[str] = set()
        self.killed = False

    async def start(self, name: str) -> None:
        if name not in self.fleet.engines:
            await self.fleet.start(name)
            self.fleet[name].pace()

    async def step(self, kind: str, what: str | int, count: int) -> None:
        if kind == "ask":
            request_id = f"r{len(self.asked)}"
            self.asked[request_id] = count
            await self.fleet.ask(request_id, prompt_tokens=int(what), max_tokens=count, first_token=len(self.asked))
        elif kind == "abort" and (request_id := f"r{what}") in self.asked and not self.fleet.ends[request_id]:
            self.aborted.add(request_id)
            await self.fleet.client.abort_requests_async([request_id])
        elif kind == "allow" and what in self.fleet.engines:
            self.fleet[str(what)].allow(count)
        elif kind == "kill" and what in self.fleet.engines:
            self.killed = True
            await self.fleet.kill(str(what))
        elif kind == "start":
            await self.start(str(what))
        elif kind == "rest":
            await settle(int(what))

    async def finish(self) -> None:
        """Give every context an engine and all the permits it needs."""
        await self.start("d1")
        for engine in self.fleet.engines.values():
            engine.allow(1000)
        for request_id in self.asked.keys() - self.aborted:
            assert await self.fleet.finished(request_id) is FinishReason.LENGTH
        await settle()

    def check(self) -> None:
        fleet = self.fleet
        for n, (request_id, count) in enumerate(self.asked.items()):
            stream = token_stream([n + 1], count)
            got = fleet.tokens[request_id]
            assert got == (stream[: len(got)] if request_id in self.aborted else stream)
        assert fleet.metric("requests_in_flight") == 0
        ended = {outcome: fleet.metric("requests_total", outcome=outcome) for outcome in ("length", "abort", "error")}
        # A context may have finished before its abort was read; then it counts as finished.
        assert ended["error"] == 0 and sum(ended.values()) == len(self.asked)
        assert ended["abort"] <= len(self.aborted)
        assert fleet.metric("generation_tokens_total") == sum(map(len, fleet.tokens.values()))
        if not self.killed:
            assert fleet.held == set()
            assert fleet.metric("moves_total", reason="engine_lost", mode="replay") == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_every_stream_is_exact_and_every_ledger_balances(steps: list[tuple[str, str | int, int]]) -> None:
    async def play() -> None:
        run = Play()
        try:
            await run.start("p1")
            await run.start("d1")
            for step in steps:
                await run.step(*step)
            await run.finish()
            run.check()
        finally:
            await run.fleet.close()

    asyncio.run(play())
