"""What Ferry changes in every process of an engine: vLLM's plugin hook (`vllm.general_plugins`).

Source: https://docs.vllm.ai/en/latest/design/plugin_system.html
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

SLEEPING_WAITS = "FERRY_SLEEPING_WAITS"
ENDS_WITH_PARENT = "FERRY_ENDS_WITH_PARENT"
# Bounds a wake-up lost by ZMQ: with CONFLATE a pipe may go to sleep just as the writer takes it for awake.
BUSY_POLL_MS = 1
PARENT_LOOK_S = 1.0


def register() -> None:
    """Called by vLLM in the engine core and in each worker, before they talk to each other."""
    if os.environ.get(ENDS_WITH_PARENT) == "1":
        _end_with_parent()
    if os.environ.get(SLEEPING_WAITS) == "1":
        _sleep_in_waits()


def _end_with_parent() -> None:
    """A core whose host was killed would wait for ever, with the device's memory; so would its workers."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():
        return  # not vLLM's child: the host itself, or one whose parent is gone already

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(PARENT_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="ferry-parent-watch", daemon=True).start()


def _sleep_in_waits() -> None:
    """Let readers of vLLM's message queues sleep at once instead of spinning for a second after each message.

    An engine on CPU computes on the cores that its core would spin on: two busy engines on two cores took 54 ms for
    a step instead of 23.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    idle_wait = shm_broadcast.SpinCondition.wait

    def wait(self: SpinCondition, timeout_ms: int | None = None) -> None:
        busy = time.monotonic() <= self.last_read + self.busy_loop_s
        if not busy:
            idle_wait(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(BUSY_POLL_MS)):
            self.local_notify_socket.recv(copy=False)

    shm_broadcast.SpinCondition.wait = wait
