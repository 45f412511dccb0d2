"""SIGINT and SIGTERM to `ferry up`: the first asks it to stop in order, the second ends all of it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import psutil


class StopSignals:
    """Counts both signals from `install` on.

    While engines load, the first raises KeyboardInterrupt in the main thread. That may be lost: Ray calls back from C,
    where an exception is printed and forgotten. So who waits asks `check` again and again.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._waits = False

    def install(self) -> None:
        """After Ray has started, which sets a handler of its own that leaves its agents to notice."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raises KeyboardInterrupt once a signal has come."""
        if self._asked.is_set():
            raise KeyboardInterrupt

    def wait(self) -> None:
        """Sleep until one comes; nothing is raised."""
        self._waits = True
        while not self._asked.wait(timeout=1.0):
            pass

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self._asked.is_set():
            stop_hard()
        self._asked.set()
        if not self._waits:
            raise KeyboardInterrupt


def stop_hard() -> None:
    """Kill every descendant, by pid, and leave."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(130)
