"""A pool at work: its engines in step with each other, and the choice of one for each request."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from planner.simulate.engine import FOREVER, Engine
from planner.simulate.fleet import Pool, Spread
from planner.simulate.ledger import Ledger


class Station:
    """The engines of one pool. `prefill_only`: requests leave after their first token."""

    def __init__(self, pool: Pool, ledger: Ledger, *, seed: int, prefill_only: bool = False) -> None:
        shared: deque[int] | None = deque() if pool.spread is Spread.SHARED_QUEUE else None
        self.engines = [
            Engine(pool.costs, pool.rules, ledger, prefill_only=prefill_only, waiting=shared)
            for _ in range(pool.engines)
        ]
        self._spread, self._prefill_only = pool.spread, prefill_only
        self._given = 0
        self._rng = np.random.default_rng([seed, 3])
        self._drawn: list[int] = []

    def give(self, request: int, at_s: float) -> None:
        """The request arrives; the engines that the choice looks at are run up to `at_s` first."""
        self._choose(at_s).give(request)

    def _choose(self, at_s: float) -> Engine:
        """An engine, run up to `at_s`."""
        engines = self.engines
        if self._spread is Spread.LEAST_LOADED or self._spread is Spread.SHARED_QUEUE:
            self.advance(at_s)
            if self._spread is Spread.SHARED_QUEUE:
                return engines[0]
            if self._prefill_only:
                return min(engines, key=lambda engine: (engine.queued_tokens, engine.outstanding))
            return min(engines, key=lambda engine: (engine.outstanding, engine.queued_tokens))
        if self._spread is Spread.RANDOM:
            if not self._drawn:
                self._drawn = self._rng.integers(len(engines), size=4096).tolist()
            engine = engines[self._drawn.pop()]
        else:
            engine = engines[self._given % len(engines)]
            self._given += 1
        engine.advance(at_s)
        return engine

    def advance(self, until_s: float) -> None:
        """Run every engine to `until_s`. With a shared queue, who is first at the end of a step is first served."""
        if self._spread is not Spread.SHARED_QUEUE:
            for engine in self.engines:
                if engine.now_s < until_s:
                    engine.advance(until_s)
            return
        queue = self.engines[0].waiting
        while queue:
            engine = min(self.engines, key=lambda one: one.now_s)
            if engine.now_s >= until_s or not engine.step(until_s):
                break
        for engine in self.engines:
            engine.advance(until_s)

    def take_finished(self) -> list[int]:
        """Requests that left since the last call."""
        finished = [request for engine in self.engines for request in engine.finished]
        for engine in self.engines:
            engine.finished.clear()
        return finished

    @property
    def next_event(self) -> tuple[float, bool]:
        """The first of its engines' events."""
        return min(engine.next_event for engine in self.engines)

    def step_first(self) -> None:
        """Let the engine whose event is first do one step, or its run of steps to the end that the event is."""
        engine = min(self.engines, key=lambda engine: engine.next_event)
        at_s, starts = engine.next_event
        engine.step(math.nextafter(at_s, FOREVER) if starts else FOREVER)
