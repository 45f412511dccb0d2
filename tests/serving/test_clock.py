"""The system's clock, and the fake one that tests move by hand."""

from __future__ import annotations

import asyncio

from serving.clock import SystemClock
from tests.fakes import FakeClock


async def test_the_systems_clock_goes_forward() -> None:
    clock = SystemClock()
    started_s = clock.now_s()
    await clock.sleep(0.02)
    assert 0.02 <= clock.now_s() - started_s < 5.0


async def test_a_fake_clock_stops_at_each_sleeper() -> None:
    clock, woken = FakeClock(now_s=0.0), []

    async def every(interval_s: float) -> None:
        while True:
            await clock.sleep(interval_s)
            woken.append((clock.now_s(), interval_s))

    tasks = [asyncio.create_task(every(2.0)), asyncio.create_task(every(3.0))]
    await clock.advance(6.5)
    assert woken == [(2.0, 2.0), (3.0, 3.0), (4.0, 2.0), (6.0, 3.0), (6.0, 2.0)]
    assert clock.now_s() == 6.5
    for task in tasks:
        task.cancel()


async def test_a_fake_sleep_of_nothing_returns() -> None:
    clock = FakeClock(now_s=1.0)
    await clock.sleep(0.0)
    assert clock.now_s() == 1.0
