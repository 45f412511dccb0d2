"""Watches the process that it runs in: how late the event loop serves a timer, and what CPU the process takes."""

from __future__ import annotations

import asyncio
import resource
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.http.connection import NowNs
from loadtest.timer import Timer

BEAT_NS = 10_000_000
BEATS_PER_S = 100

_SCHEDSTAT = Path("/proc/self/schedstat")


@dataclass(frozen=True, slots=True)
class Load:
    """CPU time and clocks of this process at one instant."""

    at_ns: int
    cpu_s: float
    cpu_wait_s: float
    wall_clock_ns: int


class Heartbeat:
    """Beats every 10 ms while it runs, notes its own lateness, and calls `on_beat` and, each second, `on_second`."""

    def __init__(self, now_ns: NowNs, on_beat: Callable[[], None], on_second: Callable[[], None]) -> None:
        self._now_ns = now_ns
        self._on_beat = on_beat
        self._on_second = on_second
        self._timer = Timer()
        self._late_ns = array("q")
        self._next_ns = 0
        self._second_cpu_s = 0.0
        self._second_ns = 0
        self.peak_cpu_share = 0.0

    def start(self) -> None:
        self._second_ns, self._second_cpu_s = self._now_ns(), time.process_time()
        self._next_ns = self._second_ns + BEAT_NS
        asyncio.get_running_loop().add_reader(self._timer.fd, self._beat)
        self._timer.arm(self._next_ns)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._timer.fd)
        self._timer.close()

    @property
    def beats(self) -> int:
        return len(self._late_ns)

    def stall_ms(self, quantile: float) -> float:
        """Lateness of beats; a long stall counts once for every beat that it swallowed."""
        return float(np.quantile(self._late_ns, quantile)) / 1e6 if self._late_ns else 0.0

    def _beat(self) -> None:
        self._timer.clear()
        now_ns = self._now_ns()
        while self._next_ns <= now_ns:
            self._late_ns.append(now_ns - self._next_ns)
            self._next_ns += BEAT_NS
        self._on_beat()
        if now_ns - self._second_ns >= BEATS_PER_S * BEAT_NS:
            self._take_second(now_ns)
        self._timer.arm(self._next_ns)

    def _take_second(self, now_ns: int) -> None:
        cpu_s = time.process_time()
        share = (cpu_s - self._second_cpu_s) / ((now_ns - self._second_ns) / 1e9)
        self.peak_cpu_share = max(self.peak_cpu_share, share)
        self._second_ns, self._second_cpu_s = now_ns, cpu_s
        self._on_second()


def load_now(now_ns: NowNs) -> Load:
    """Kernels without scheduler statistics report no waiting."""
    try:
        wait_s = int(_SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        wait_s = 0.0
    return Load(now_ns(), time.process_time(), wait_s, time.time_ns())


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
