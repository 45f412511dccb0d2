"""A deployment in the background: a second `ferry up` in its own session, watched until it answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serving import run_state
from serving.errors import EngineStartFailed
from serving.lifecycle import Say
from serving.run_state import RunState

POLL_S = 0.2


def start(arguments: Sequence[str], folder: Path, *, timeout_s: float, say: Say) -> RunState:
    """Run `ferry up` with these arguments in the background and return when it has answered its first question.

    Raises:
        EngineStartFailed: when it ends, or does not answer in time (then it is stopped).
        SystemExit: with the child's own exit code, after its own error lines, when it refuses to start.
    """
    log_path = folder / "log"
    with log_path.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "serving", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s, tail = time.monotonic() + timeout_s, ""
    with log_path.open() as log:
        while time.monotonic() < deadline_s:
            code, state = child.poll(), run_state.read(folder)
            *lines, tail = (tail + log.read()).split("\n")  # an answer arrives in pieces of a line
            for line in lines:
                say(line)
            if code is not None:
                raise SystemExit(code or 1)
            if state is not None and state.answers and state.pid == child.pid:
                return state
            time.sleep(POLL_S)
    child.terminate()
    raise EngineStartFailed(f"no answer after {timeout_s:.0f} s", remedy=f"read {log_path}; raise --timeout-s")
