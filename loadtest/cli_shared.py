"""What the commands of `ferry load` share: exit codes, and errors told without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

import typer
from rich.console import Console

from loadtest.report import Verdict
from loadtest.types import LoadTestError
from planner import PlannerError

EXIT_CODES = MappingProxyType({Verdict.MET: 0, Verdict.NO_SLO: 0, Verdict.MISSED: 1, Verdict.INVALID: 3})
CANNOT_RUN = 2


@contextmanager
def errors_as_exit_codes(command: str = "ferry load") -> Iterator[None]:
    try:
        yield
    except (LoadTestError, PlannerError) as error:
        remedy = f"; {error.remedy}" if isinstance(error, PlannerError) else ""
        told = f"{command}: {error}{remedy}"
        Console(stderr=True).print(told, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(CANNOT_RUN) from error
