"""Does an engine that has work still make progress? Pure: instants and CPU seconds come in.

A step can be long, and a long step is no stall; nor is a step that waits for a crowded machine. But an engine that says
nothing, burns no CPU and does not even ask for any, while requests wait for it, stands still: stopped, or dead-locked.
A device that hangs while the host spins on it looks busy here; vLLM's own VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS ends that.
"""

from __future__ import annotations

from collections import deque

SILENCE_S = 1.75
P99_FACTOR = 3.0
IDLE_CPU_SHARE = 0.1
"""Cores. Threads that only poll take less than this; a worker that computes takes more, even on a crowded machine."""
INTERVALS_KEPT = 512


class StallWatch:
    """Judges one engine from its messages and from samples taken a few times a second."""

    def __init__(self) -> None:
        self._intervals_s: deque[float] = deque(maxlen=INTERVALS_KEPT)
        self._quiet_since_s: float | None = None
        self._idle_since_s = 0.0
        self._cpu_mark_s: float | None = None
        self._stalled = False

    @property
    def limit_s(self) -> float:
        """Silence that an engine with work may keep: 3 times the 99th percentile of its usual, but not less than 2 s
        together with the interval of sampling."""
        ordered = sorted(self._intervals_s)
        p99_s = ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0
        return max(SILENCE_S, P99_FACTOR * p99_s)

    def spoke(self, now_s: float) -> None:
        """The engine said something."""
        if self._quiet_since_s is not None:
            if not self._stalled:  # a stall is not its usual
                self._intervals_s.append(now_s - self._quiet_since_s)
            self._quiet_since_s = now_s
        self._cpu_mark_s, self._stalled = None, False

    def stalls(self, now_s: float, *, has_work: bool, cpu_s: float, runnable: bool = False) -> bool:
        """True when the engine has shown no sign of life for too long. `cpu_s`: CPU time that its processes have taken
        so far; `runnable`: one of them runs now, or would if it were given a core."""
        if not has_work:
            self._quiet_since_s = self._cpu_mark_s = None
            self._stalled = False
            return False
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if self._cpu_mark_s is None or runnable:
            self._cpu_mark_s = cpu_s
            self._idle_since_s = now_s if runnable else self._quiet_since_s
        idle_s = now_s - self._idle_since_s
        self._stalled = idle_s > self.limit_s and cpu_s - self._cpu_mark_s < IDLE_CPU_SHARE * idle_s
        return self._stalled
