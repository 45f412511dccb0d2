"""Ctrl-C and SIGTERM: both ask a load test to end early and to keep what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A `with` block that counts them: the first asks for a stop, the second raises KeyboardInterrupt.

    A series of runs holds one for all of them, so that a signal between two runs ends the series and not the command.
    """

    def __init__(self) -> None:
        self.count = 0
        self._patient = True
        self._before: list[signal._HANDLER] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            self._before = [signal.signal(number, self._on_signal) for number in STOPS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(STOPS, self._before, strict=False):
            signal.signal(number, before)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where a stop loses nothing the first one raises KeyboardInterrupt too, also one that came before."""
        self._patient = False
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._patient = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or not self._patient:
            raise KeyboardInterrupt


def held(of_series: Interrupts | None) -> AbstractContextManager[Interrupts]:
    """For one run: those of the series that it is part of, or its own."""
    return Interrupts() if of_series is None else nullcontext(of_series)


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
