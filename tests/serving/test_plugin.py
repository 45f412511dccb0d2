"""Ferry's change to vLLM's message queues: a reader sleeps at once, and still wakes for every message."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection

import psutil
import pytest
from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

from serving.engine import plugin

MESSAGES = 40
PAUSE_S = 0.005


@pytest.fixture(autouse=True)
def own_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes the change after each test."""
    monkeypatch.setattr(shm_broadcast.SpinCondition, "wait", shm_broadcast.SpinCondition.wait)


def cpu_share_of_a_reader() -> float:
    """CPU time over elapsed time of a thread that reads a message every `PAUSE_S`; all must arrive, in order."""
    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    got: list[int] = []
    shares: list[float] = []

    def read() -> None:
        reader.wait_until_ready()
        cpu_s, began_s = time.thread_time(), time.monotonic()
        while len(got) < MESSAGES:
            got.append(reader.dequeue(timeout=20))
        shares.append((time.thread_time() - cpu_s) / (time.monotonic() - began_s))

    thread = threading.Thread(target=read)
    thread.start()
    writer.wait_until_ready()
    for message in range(MESSAGES):
        time.sleep(PAUSE_S)
        writer.enqueue(message)
    thread.join(30)
    assert got == list(range(MESSAGES))
    return shares[0]


def test_a_reader_sleeps_between_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.SLEEPING_WAITS, "1")
    plugin.register()
    assert cpu_share_of_a_reader() < 0.5


@pytest.mark.parametrize("value", [None, "0"])
def test_nothing_changes_unasked(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    stock = shm_broadcast.SpinCondition.wait
    monkeypatch.delenv(plugin.SLEEPING_WAITS, raising=False)
    if value is not None:
        monkeypatch.setenv(plugin.SLEEPING_WAITS, value)
    plugin.register()
    assert shm_broadcast.SpinCondition.wait is stock


def sleep_in_a_child(pipe: Connection) -> None:
    """What an engine core does under a host: it lives, and has told where."""
    os.environ[plugin.ENDS_WITH_PARENT] = "1"
    plugin.register()
    pipe.send(os.getpid())
    time.sleep(60)


def parent_of_a_child(pipe: Connection) -> None:
    multiprocessing.get_context("spawn").Process(target=sleep_in_a_child, args=(pipe,)).start()
    time.sleep(60)


@pytest.mark.slow
def test_a_child_ends_with_its_parent_however_that_ends() -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    parent = spawn.Process(target=parent_of_a_child, args=(theirs,))
    parent.start()
    try:
        assert ours.poll(60)
        child = psutil.Process(ours.recv())
    finally:
        parent.kill()
        parent.join()
    child.wait(timeout=3 + plugin.PARENT_LOOK_S)
