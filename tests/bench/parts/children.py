"""Processes of a measurement: each in its own interpreter, asked over a pipe, gone when its asker is gone."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

STOP_TIMEOUT_S = 15.0


class BenchFailed(Exception):
    """A measurement that means nothing: an error, a missing token, a process that died."""


class Child:
    """One spawned process that runs `main(conn, *args)`. Its first message is what it says when ready."""

    def __init__(self, main: Callable[..., None], *args: Any, ready_within_s: float = 180.0):
        context = multiprocessing.get_context("spawn")
        self._conn, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(main, theirs, *args))
        self._process.start()
        theirs.close()
        self.said = self._answer(ready_within_s)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def ask(self, question: Any, timeout_s: float = 600.0) -> Any:
        """One question, one answer.

        Raises:
            BenchFailed: when the child failed at it, died, or took too long.
        """
        self._conn.send(question)
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> Any:
        if not self._conn.poll(timeout_s):
            self.stop()
            raise BenchFailed(f"{self._process.name} did not answer within {timeout_s:.0f} s")
        try:
            answer = self._conn.recv()
        except EOFError:
            raise BenchFailed(f"{self._process.name} died with exit code {self._process.exitcode}") from None
        if isinstance(answer, BenchFailed):
            raise answer
        return answer

    def freeze(self) -> None:
        """Stop the process and its descendants where they are: no CPU at all while another is measured."""
        for process in reversed(self.family()):
            process.suspend()

    def thaw(self) -> None:
        for process in self.family():
            process.resume()

    def stop(self) -> None:
        """Let the child end by itself; kill what does not."""
        if not self._process.is_alive():
            return
        family = self.family()
        self.thaw()
        self._conn.close()
        self._process.join(STOP_TIMEOUT_S)
        for survivor in psutil.wait_procs(family, timeout=2.0)[1]:
            survivor.kill()
        self._process.join()


def _run(main: Callable[..., None], conn: Connection, *args: Any) -> None:
    try:
        main(conn, *args)
    except EOFError:
        return
    except BenchFailed as error:
        conn.send(error)
    except Exception as error:  # told to the asker, whatever it is
        traceback.print_exc()
        conn.send(BenchFailed(f"{main.__module__}.{main.__name__}: {type(error).__name__}: {error}"))


async def answer_all(conn: Connection, answer: Callable[[Any], Awaitable[Any]]) -> None:
    """Serve questions until the asker closes the pipe."""
    while True:
        try:
            question = await asyncio.to_thread(conn.recv)
        except EOFError:
            return
        conn.send(await answer(question))


def cpu_s(pid: int) -> float:
    """CPU time of a process, to the nanosecond: psutil's ticks of 10 ms are too coarse for one stream."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill and reap a process that leads a group of its own, and all that is in the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def busy_share(processes: list[psutil.Process], during_s: float, sleep: Callable[[float], None]) -> float:
    """CPU of these processes over a while, in cores."""
    before = {process.pid: cpu_s(process.pid) for process in processes}
    sleep(during_s)
    alive = [process.pid for process in processes if process.is_running() and os.path.exists(f"/proc/{process.pid}")]
    return sum(cpu_s(pid) - before[pid] for pid in alive) / during_s
