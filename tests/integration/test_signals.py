"""Signals to `ferry up`: whenever they come, nothing that it started stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serving import run_state
from tests.integration.conftest import CORE_NAME, HOME, ROOT, config_file, free_port

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(300)]

START_TIMEOUT_S = 180
HARD_STOP_TIMEOUT_S = 10


def is_engine_core(process: psutil.Process) -> bool:
    """One that ends meanwhile is none, and must not hide the others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(CORE_NAME in name for name in (process.name(), *process.cmdline()))
    return False


class Up:
    """`ferry up` in the foreground of a process of its own."""

    def __init__(self, folder: Path):
        self.port, self.log = free_port(), folder / "log"
        pools = {"mixed": {"role": "mixed", "replicas": 1}}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", "up", "--config", str(config_file(folder, pools=pools))],
                cwd=ROOT,
                env=os.environ | {"FERRY_HTTP__PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def loads_an_engine(self) -> bool:
        return any(map(is_engine_core, self.family()))

    def await_(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        state = run_state.read(HOME / "run" / str(self.port))
        return state is not None and state.answers


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    family: list[psutil.Process] = []
    try:
        yield up
    finally:
        if up.process.poll() is None:
            family = up.family()
            up.process.kill()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_engines_load_leaves_nothing(up: Up, number: signal.Signals) -> None:
    up.await_(up.loads_an_engine)
    family = up.family()
    up.process.send_signal(number)
    assert up.process.wait(60) != 0
    assert psutil.wait_procs(family, timeout=HARD_STOP_TIMEOUT_S)[1] == [], up.log.read_text()
    assert run_state.read(HOME / "run" / str(up.port)) is None


def test_a_second_signal_stops_at_once(up: Up) -> None:
    up.await_(up.answers)
    body = {"model": "smollm2-135m", "prompt": "A river", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{up.port}/v1/completions", json=body, timeout=60) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
        family = up.family()
        up.process.send_signal(signal.SIGINT)
        up.await_(lambda: "Ctrl-C again" in up.log.read_text())
        time.sleep(1.0)
        assert up.process.poll() is None, "a running request holds the first stop"
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(HARD_STOP_TIMEOUT_S) == 130
    assert psutil.wait_procs(family, timeout=HARD_STOP_TIMEOUT_S)[1] == []
