"""What the commands of `ferry load` share: exit codes, and errors told without a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

import typer
from rich.console import Console

from loadtest.interrupts import terminated_as_interrupted
from loadtest.report import Report, Verdict
from loadtest.types import Interrupted, LoadTestError, Outcome
from planner import PlannerError

EXIT_CODES = MappingProxyType({Verdict.MET: 0, Verdict.NO_SLO: 0, Verdict.MISSED: 1, Verdict.INVALID: 3})
CANNOT_RUN = 2
INTERRUPTED = 130
# Files are written where this is known and told; what is left is the output.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
STOPPED_AT_ONCE = "stopped at once: runs that were not saved by now are lost"


@contextmanager
def errors_as_exit_codes(command: str = "ferry load") -> Iterator[None]:
    with terminated_as_interrupted():
        try:
            yield
        except (LoadTestError, PlannerError) as error:
            remedy = f"; {error.remedy}" if isinstance(error, PlannerError) else ""
            tell_error(f"{error}{remedy}", command)
            raise typer.Exit(code_of_error(error)) from error
        except KeyboardInterrupt as error:
            tell_error(STOPPED_AT_ONCE, command)
            raise typer.Exit(INTERRUPTED) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            tell_error(f"the output cannot be written: {error.strerror}; results are in --save-dir", command)
            _write_no_more()
            raise typer.Exit(CANNOT_RUN) from error


def _write_no_more() -> None:
    """What waits in the buffer would fail once more when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def tell_error(why: str, command: str = "ferry load") -> None:
    Console(stderr=True).print(f"{command}: {why}", style="red", markup=False, highlight=False, soft_wrap=True)


def code_of_error(error: Exception) -> int:
    return INTERRUPTED if isinstance(error, Interrupted) else CANNOT_RUN


def code_of_run(report: Report) -> int:
    """The exit code of one run; where nothing was promised and nothing served, it tells why the run is no use."""
    if report.interrupted:
        return INTERRUPTED
    if report.verdict is Verdict.NO_SLO and not report.total.outcomes.get(Outcome.OK):
        due = report.total.due
        tell_error(f"not one of {due} requests completed" if due else "no request counts: all were due in the warm-up")
        return CANNOT_RUN
    return EXIT_CODES[report.verdict]
