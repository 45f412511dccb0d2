"""Which signal stops what, also where the interrupt that it raises is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from serving.stop_signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = [signal.getsignal(number) for number in NUMBERS]
    signals = StopSignals()
    signals.install()
    yield signals
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_while_engines_load_a_signal_interrupts(signals: StopSignals, number: signal.Signals) -> None:
    signals.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_an_interrupt_that_a_callback_swallows_is_not_forgotten(signals: StopSignals) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt):
        signals.check()


def test_who_waits_is_told_without_an_interrupt(signals: StopSignals) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    signals.wait()


@pytest.mark.slow
def test_a_second_signal_kills_every_descendant() -> None:
    code = """
        import os, signal, subprocess, sys, time
        from serving.stop_signals import StopSignals
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        signals = StopSignals()
        signals.install()
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except KeyboardInterrupt:
                pass
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait(10) == 130
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(child).wait(5) is None
