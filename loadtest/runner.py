"""Runs a load test: splits the jobs over worker processes, starts them at one instant, gathers what they saw."""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtest.crew import Crew, hiring
from loadtest.driver import Counts
from loadtest.interrupts import Interrupts, held
from loadtest.spec import RunResult, RunSpec
from loadtest.types import LoadTestError

# From the word to the first due time: it has to reach every worker.
START_IN_NS = 50_000_000
# Over a network the word takes longer, and first goes to one, then to the next.
REMOTE_START_IN_NS = 500_000_000


def run(
    spec: RunSpec,
    on_progress: Callable[[Counts], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    of_series: Interrupts | None = None,
) -> RunResult:
    """Run it to its end. SIGINT or SIGTERM ends it early: the result then holds what was seen so far.

    `on_start` is told the instant from which due times count, shortly before it comes; it must not take long.
    `of_series`: what a series of runs holds to hear of signals; without it the run hears of them itself.

    Raises:
        LoadTestError: when it could not start. Interrupted: when it was stopped before.
    """
    if not spec.jobs:
        raise LoadTestError("there is no request to send")
    with held(of_series) as interrupts, hiring(spec) as hands, Crew(spec, hands) as crew:
        crew.get_ready(interrupts)
        start_in_ns = START_IN_NS if spec.ray_address is None else REMOTE_START_IN_NS
        start_ns = time.monotonic_ns() + start_in_ns
        started_at_s = (time.time_ns() + start_in_ns) / 1e9
        crew.start(start_ns)
        if on_start is not None:
            on_start(start_ns)
        crew.gather(interrupts, on_progress)
        crew.look_at_clocks_again()
        return RunResult(
            spec=spec,
            run_id=crew.run_id,
            start_ns=start_ns,
            started_at_s=started_at_s,
            records=tuple(sorted(crew.records, key=lambda record: (record.due_ns, record.number))),
            workers=tuple(crew.audits()),
            interrupted=bool(interrupts.count),
            died=tuple(crew.died),
        )
