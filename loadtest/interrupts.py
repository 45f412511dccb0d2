"""Ctrl-C and SIGTERM: both ask a load test to end early and to keep what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A `with` block that counts them: the first asks for a stop, the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.count = 0
        self._before: list[signal._HANDLER] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            self._before = [signal.signal(number, self._on_signal) for number in STOPS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(STOPS, self._before, strict=False):
            signal.signal(number, before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt too, so that whatever is open is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
