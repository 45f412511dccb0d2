"""Scrapes the server each second while a load runs, in a thread: the worker processes that measure do not notice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from loadtest.endpoint import Asker
from loadtest.types import LoadTestError, Target
from loadtest.watch.exposition import server_sample
from loadtest.watch.gpus import Gpus, gpus_here
from loadtest.watch.types import GpuSample, ServerSample, Watched

EVERY_S = 1.0
ANSWER_WITHIN_S = 5.0
# A server that offers nothing to scrape is not asked again and again.
REFUSALS = frozenset({401, 403, 404, 405})


class Watcher:
    """A `with` block: scrapes at its begin, each second, and at its end. `taken` afterwards gives what was seen.

    A scrape that fails is counted under its reason and the next one is tried, except where the server says that it has
    nothing to scrape. `find_gpus` None: the machine's GPUs are not looked at.
    """

    def __init__(
        self,
        target: Target,
        *,
        path: str = "/metrics",
        every_s: float = EVERY_S,
        find_gpus: Callable[[], Gpus | None] | None = gpus_here,
    ) -> None:
        self._asker = Asker(target, ANSWER_WITHIN_S)
        self._path = path
        self._every_s = every_s
        self._find_gpus = find_gpus
        self._gpus: Gpus | None = None
        self._server: list[ServerSample] = []
        self._gpu_samples: list[GpuSample] = []
        self._errors: Counter[str] = Counter()
        self._refused = False
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._gpus = self._find_gpus() if self._find_gpus is not None else None
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self._look()
        self._asker.close()
        if self._gpus is not None:
            self._gpus.close()

    def taken(self) -> Watched:
        return Watched(tuple(self._server), tuple(self._gpu_samples), dict(self._errors))

    def _watch(self) -> None:
        """At absolute times, so that slow answers do not move the later ones; what was missed is not made up for."""
        next_s = time.perf_counter() + self._every_s
        while not self._enough.wait(max(0.0, next_s - time.perf_counter())):
            self._look()
            now_s = time.perf_counter()
            next_s += self._every_s * max(1, 1 + int((now_s - next_s) / self._every_s))

    def _look(self) -> None:
        if self._gpus is not None:
            self._gpu_samples += self._gpus.sample(time.monotonic_ns())
        if self._refused:
            return
        asked_ns = time.monotonic_ns()
        try:
            status, body = self._asker.fetch("GET", self._path)
        except LoadTestError as error:
            self._errors[str(error)] += 1
            return
        took_ns = time.monotonic_ns() - asked_ns
        if status != 200:
            self._errors[f"status {status}"] += 1
            self._refused = status in REFUSALS
            return
        try:
            self._server.append(server_sample(body.decode(errors="replace"), asked_ns + took_ns // 2, took_ns))
        except ValueError as error:
            self._errors[str(error)] += 1
