"""Does the actions of a drill on time, while the load runs."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Sequence
from typing import Any

from loadtest.drill.hands import Hands, load_of
from loadtest.drill.report import ActionDone
from loadtest.drill.timeline import Action, Kind
from loadtest.types import LoadTestError

LOOK_EVERY_S = 0.25


class Conductor:
    """A `with` block around the run; `begin` is told the load's start. What the run's end comes before stays undone."""

    def __init__(self, actions: Sequence[Action], hands: Hands) -> None:
        self._left = list(actions)
        self._hands = hands
        self._start_ns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._conduct, name="drill", daemon=True)
        self._done: list[ActionDone] = []
        self._lock = threading.Lock()
        self._watchers: list[threading.Thread] = []

    def __enter__(self) -> Conductor:
        return self

    def begin(self, start_ns: int) -> None:
        """From the monotonic instant `start_ns` on the actions' times count."""
        self._start_ns = start_ns
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in (self._thread, *self._watchers):
            if thread.ident is not None:
                thread.join()

    @property
    def done(self) -> list[ActionDone]:
        """What was done, in the order of the actions."""
        with self._lock:
            return sorted(self._done, key=lambda one: one.began_s)

    @property
    def undone(self) -> list[Action]:
        """What the run's end came before; read it after the block."""
        return list(self._left)

    def _conduct(self) -> None:
        while self._left:
            action = self._left[0]
            if self._over.wait(max(0.0, action.at_s - self._now_s())):
                return
            del self._left[0]
            began_s = self._now_s()
            deed = self._hands.do(action)
            done = ActionDone(
                what=str(action), at_s=action.at_s, began_s=began_s, took_s=self._now_s() - began_s, ok=deed.ok,
                told=deed.told, replica=deed.replica,
            )  # fmt: skip
            with self._lock:
                self._done.append(done)
            if deed.ok and action.kind is Kind.NOTICE:
                bisect.insort(self._left, action.taking(deed.replica, began_s), key=lambda one: one.at_s)
            if deed.ok and action.kind in (Kind.DRAIN, Kind.NOTICE):
                watcher = threading.Thread(target=self._until_empty, args=(done,), name="drained", daemon=True)
                self._watchers.append(watcher)
                watcher.start()

    def _until_empty(self, drain: ActionDone) -> None:
        """Note when the drained replica has nothing left to do. It may have gone by then, which is empty too."""
        while not self._over.wait(LOOK_EVERY_S):
            try:
                replicas = self._hands.replicas()
            except LoadTestError:
                continue  # asked again soon: the deployment is being harmed after all
            left = next((one for one in replicas if str(one["replica"]) == drain.replica), None)
            if left is None or _is_empty(left):
                with self._lock:
                    self._done[self._done.index(drain)] = drain.emptied_at(self._now_s())
                return

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self._start_ns) / 1e9


def _is_empty(replica: dict[str, Any]) -> bool:
    """Only where it tells its load at all."""
    return "running" in replica and load_of(replica) == 0
