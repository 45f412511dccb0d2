"""Child processes with a pipe: a fresh interpreter that imports one function and nothing of the parent's program."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

STOP_WITHIN_S = 2.0

# `multiprocessing` would run the parent's main module again in the child, and `ferry` imports all of serving.
_MAIN = """
import importlib, sys
sys.path[:] = {path!r}
from multiprocessing.connection import Connection
getattr(importlib.import_module({module!r}), {name!r})(Connection({fd}))
"""


class Child:
    """A process that runs `main(pipe)`. It is expected to end when its pipe is closed; `stop` makes sure."""

    def __init__(self, main: Callable[[Pipe], None]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        code = _MAIN.format(path=sys.path, module=main.__module__, name=main.__name__, fd=theirs.fileno())
        # In a group of its own, out of reach of the terminal's Ctrl-C: it means the parent, which then ends the child.
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], process_group=0)
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def remote(self) -> bool:
        return False

    def send(self, message: Any) -> bool:
        """False if the child is gone; the next `recv` tells so too."""
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def recv(self) -> Any:
        """Raises EOFError if the child is gone, be it in the middle of a message."""
        try:
            return self.pipe.recv()
        except OSError as error:
            raise EOFError from error

    def how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        self.pipe.close()
        try:
            self._process.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def pin_to_core(core: int) -> None:
    """Keep the calling process on one core."""
    os.sched_setaffinity(0, {core})
