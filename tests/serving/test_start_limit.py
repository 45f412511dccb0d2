"""An engine may load for so long, and no longer."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time

import psutil
import pytest

from serving.engine.process import ended_after
from serving.errors import EngineStartFailed

WITHIN_S = 20.0
SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def sleeping_core() -> multiprocessing.process.BaseProcess:
    """A process that waits for a child, as a core for its workers."""
    process = multiprocessing.get_context("spawn").Process(target=subprocess.run, args=(SLEEPS,))
    process.start()
    return process


def children_of(process: multiprocessing.process.BaseProcess) -> list[psutil.Process]:
    assert process.pid is not None
    parent = psutil.Process(process.pid)
    while not (children := parent.children()):
        assert process.is_alive()
    return children


@pytest.mark.slow
def test_a_core_that_takes_too_long_is_killed_with_its_workers() -> None:
    other = sleeping_core()
    try:
        with pytest.raises(EngineStartFailed, match="not loaded within 3 s") as caught, ended_after(3.0):
            late = sleeping_core()
            workers = children_of(late)
            late.join(WITHIN_S)
            raise RuntimeError("Engine core initialization failed")
        assert caught.value.__cause__ is None, "vLLM's log has nothing to add"
        assert not late.is_alive() and psutil.wait_procs(workers, timeout=WITHIN_S)[1] == []
        assert other.is_alive(), "it was here before"
    finally:
        for one in children_of(other):
            one.kill()
        other.join(WITHIN_S)


def test_a_start_that_ends_too_late_is_none() -> None:
    with pytest.raises(EngineStartFailed), ended_after(0.0):
        time.sleep(0.2)


def test_a_start_within_its_time_ends_as_it_ends() -> None:
    threads = set(threading.enumerate())
    with ended_after(60.0):
        pass
    with pytest.raises(RuntimeError, match="vLLM says so"), ended_after(60.0):
        raise RuntimeError("vLLM says so")
    for thread in set(threading.enumerate()) - threads:
        thread.join(WITHIN_S)
        assert not thread.is_alive()
