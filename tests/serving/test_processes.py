"""Whether an engine's processes live: what is seen of them from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from serving.engine.processes import child_runs, sample

BUSY, ASLEEP = "while True: pass", "import time; time.sleep(60)"
# A process that waits for its child, as torch does for a compiler.
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
WITHIN_S = 20.0


@contextmanager
def parent_of(child: str) -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", PARENT, child]) as process:
        parent = psutil.Process(process.pid)
        try:
            until(lambda: parent.children())
            yield parent
        finally:
            for one in (*parent.children(), parent):
                one.kill()


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_process_that_waits_for_a_busy_child_is_at_work() -> None:
    with parent_of(BUSY) as parent:
        until(lambda: child_runs([parent]))
        assert not sample(parent)[1]


def test_a_sleeping_child_is_no_work_and_a_known_one_is_judged_by_itself() -> None:
    with parent_of(ASLEEP) as parent:
        until(lambda: not child_runs([parent]))
    with parent_of(BUSY) as parent:
        assert not child_runs([parent, *parent.children()])


def test_a_process_that_is_gone_does_nothing() -> None:
    with parent_of(BUSY) as parent:
        pass
    assert sample(parent) == (0.0, False) and not child_runs([parent])
