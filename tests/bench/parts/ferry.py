"""A Ferry for a measurement: started as users start it, known by a mark in its processes' environment, and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from parts.children import BenchFailed

from serving import run_state
from serving.engine.process import free_port
from serving.model_store import default_home
from serving.run_state import RunState

MARK = "BENCH_MARK"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 120.0
ROOT = Path(__file__).resolve().parents[3]
HOME = Path(os.environ.get("FERRY_HOME") or default_home())


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running Ferry, and how long it took to be ready."""

    state: RunState
    mark: str
    start_s: float

    def processes(self) -> list[psutil.Process]:
        return marked(self.mark)

    def gateway_pid(self) -> int:
        found = [p.pid for p in self.processes() if title(p).startswith("ray::") and "gateway" in title(p)]
        if len(found) != 1:
            raise BenchFailed(f"{len(found)} gateway processes")
        return found[0]


def local_settings() -> dict[str, Any]:
    """configs/local.yaml as a tree."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    return tree


@contextlib.contextmanager
def deployed(tree: dict[str, Any], *, mark: str | None = None) -> Iterator[Deployment]:
    """Start Ferry with these settings on a free port; stop it, however the block ends.

    Raises:
        BenchFailed: when it does not start.
    """
    port, mark = free_port("127.0.0.1"), mark or uuid.uuid4().hex
    environment = {**os.environ, MARK: mark}
    tree = {**tree, "http": {**tree.get("http", {}), "host": "127.0.0.1", "port": port}}
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            yaml.safe_dump(tree, config)
            config.flush()
            started_s = time.monotonic()
            up = ["up", "--config", config.name, "--detach"]
            code, said = _ferry(up, environment, timeout_s=START_TIMEOUT_S)
            start_s = time.monotonic() - started_s
        state = run_state.read(run_state.run_dir(HOME, port))
        if code != 0 or state is None:
            raise BenchFailed(f"ferry up failed with {code}:\n{said}")
        yield Deployment(state, mark, start_s)
    finally:
        code, said = _ferry(["down", "--port", str(port)], environment, timeout_s=STOP_TIMEOUT_S)
        if code != 0 and (left := marked(mark)):
            print(f"ferry down failed with {code}; killing {len(left)} processes: {said}", file=sys.stderr)
            for process in left:
                process.kill()


def _ferry(arguments: list[str], environment: dict[str, str], *, timeout_s: float) -> tuple[int, str]:
    command = [sys.executable, "-m", "serving", *arguments]
    with tempfile.TemporaryFile("w+") as said:  # a pipe would stay open as long as any grandchild
        code = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, timeout=timeout_s
        ).returncode
        said.seek(0)
        return code, said.read()


def marked(mark: str) -> list[psutil.Process]:
    """All processes that a deployment started, wherever they hang in the tree now. Zombies are none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def title(process: psutil.Process) -> str:
    """What a process calls itself, short."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        words = process.cmdline()
        if words:
            first = Path(words[0]).name if words[0].startswith("/") else words[0]
            rest = [word for word in words[1:] if not word.startswith("-")]
            return " ".join([first, *rest[:2]])[:60]
        return process.name()
    return "gone"


def end_on_sigterm() -> None:
    """Let `finally` run when someone ends the measurement."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop)
