"""An event loop whose time is a number: it never waits, it jumps to the next timer once nothing else can run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

AN_INSTANT_S = 1e-6


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while any callback is ready, so what is under way at one instant always comes to its end."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, duration_s: float) -> None:
        self._now_s += duration_s

    def settle(self) -> None:
        """Run all that is ready, and whatever becomes ready by it."""
        self.advance(AN_INSTANT_S)

    def advance(self, duration_s: float) -> None:
        """Move time on, through every timer on the way."""
        self.run_until_complete(asyncio.sleep(duration_s))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        result = self.run_until_complete(work)
        self.settle()
        return result


class _JumpingSelector(selectors.SelectSelector):
    """Where a loop would wait for its sockets (it has none), time jumps to where it would have woken up."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "the loop waits, and no timer will ever wake it"
        self._loop.jump(max(timeout, 0.0))
        return []


class LoopClock:
    """The loop's time as serving's clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return self._loop.time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
