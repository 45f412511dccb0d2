"""Who may use a gateway's links now: bulk in short stages, and none of it while a context cuts over.

A link carries what it is given in that order: what a cut-over has to carry would wait behind the bulk of other moves,
and its client with it. So a context that cuts over waits for the stages that are on their way, and lets none begin
until it has arrived. Gateways do not know of each other's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

CLEAR_WITHIN_S = 3.0
"""A stage that is on its way for longer is on a link that hardly moves: a cut-over waits no longer for it."""


class Way:
    """The links of one gateway. One event loop owns it."""

    def __init__(self) -> None:
        self._stages = self._cut_overs = 0
        self._no_stage, self._no_cut_over = asyncio.Event(), asyncio.Event()
        self._no_stage.set()
        self._no_cut_over.set()

    async def free(self) -> None:
        """Return when no context cuts over."""
        while self._cut_overs:
            await self._no_cut_over.wait()

    @contextlib.contextmanager
    def stage(self) -> Iterator[None]:
        """The time of one stage of bulk; await `free` first."""
        self._stages += 1
        self._no_stage.clear()
        try:
            yield
        finally:
            self._stages -= 1
            if not self._stages:
                self._no_stage.set()

    def cut_over(self) -> None:
        """From now on no stage begins; end it with `over`."""
        self._cut_overs += 1
        self._no_cut_over.clear()

    def over(self) -> None:
        self._cut_overs -= 1
        if not self._cut_overs:
            self._no_cut_over.set()

    async def clear(self) -> None:
        """Return when no stage is on its way, or after `CLEAR_WITHIN_S`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._no_stage.wait(), CLEAR_WITHIN_S)
