"""When is an engine that has work at a standstill?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.stall import IDLE_CPU_SHARE, INTERVALS_KEPT, SILENCE_S, StallWatch

LOOK_S = 0.25


def first_stall_s(watch: StallWatch, *, cpu_share: float, has_work: bool = True, until_s: float = 60.0) -> float | None:
    """Seconds of silence until the watch calls it a stall, looked at four times a second."""
    looks = (n * LOOK_S for n in range(int(until_s / LOOK_S)))
    return next((s for s in looks if watch.stalls(s, has_work=has_work, cpu_s=cpu_share * s)), None)


def test_silence_without_cpu_is_a_stall_within_two_seconds() -> None:
    assert first_stall_s(StallWatch(), cpu_share=0.0) == SILENCE_S + LOOK_S


@pytest.mark.parametrize(("cpu_share", "has_work"), [(1.0, True), (IDLE_CPU_SHARE, True), (0.0, False)])
def test_long_steps_and_idle_engines_are_none(cpu_share: float, has_work: bool) -> None:
    assert first_stall_s(StallWatch(), cpu_share=cpu_share, has_work=has_work) is None


def test_waiting_for_a_crowded_machine_is_none() -> None:
    watch = StallWatch()
    looks = [n * LOOK_S for n in range(100)]
    assert not any(watch.stalls(s, has_work=True, cpu_s=0.01 * s, runnable=n % 5 == 0) for n, s in enumerate(looks))
    assert watch.stalls(looks[-1] + 2.0, has_work=True, cpu_s=0.01 * looks[-1])


def test_it_speaks_again() -> None:
    watch = StallWatch()
    assert first_stall_s(watch, cpu_share=0.0) is not None
    watch.spoke(100.0)
    assert not watch.stalls(100.0, has_work=True, cpu_s=5.0)
    assert not watch.stalls(100.0 + SILENCE_S, has_work=True, cpu_s=5.0)
    assert watch.stalls(100.0 + SILENCE_S + LOOK_S, has_work=True, cpu_s=5.0)


def test_work_that_comes_to_an_engine_that_stood_idle_starts_the_clock() -> None:
    watch = StallWatch()
    assert not watch.stalls(0.0, has_work=False, cpu_s=0.0)
    assert not watch.stalls(500.0, has_work=True, cpu_s=0.0)
    assert watch.stalls(500.0 + SILENCE_S + LOOK_S, has_work=True, cpu_s=0.0)


@given(interval_s=st.floats(0.001, 10.0), count=st.integers(10, 2 * INTERVALS_KEPT))
def test_habitually_long_steps_raise_the_limit(interval_s: float, count: int) -> None:
    watch = StallWatch()
    for n in range(count):
        watch.stalls(n * interval_s, has_work=True, cpu_s=0.0)
        watch.spoke((n + 1) * interval_s)
    assert watch.limit_s == pytest.approx(max(SILENCE_S, 3 * interval_s), rel=1e-6)
