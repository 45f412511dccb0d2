"""How commands end: 0 answered, 2 the question is at fault (one line with a remedy), 3 the answer is: it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from planner.types import PlannerError

BAD_INPUT = 2
INFEASIBLE = 3


@contextmanager
def errors_as_exit_codes(command: str = "ferry plan") -> Iterator[None]:
    """A PlannerError becomes one line on stderr and exit code 2, with no traceback."""
    try:
        yield
    except PlannerError as error:
        # `settings` stands for flags, which the user did not write into a file.
        told = str(error).removeprefix("settings: ")
        typer.echo(f"{command}: {told}; {error.remedy}", err=True)
        raise typer.Exit(BAD_INPUT) from error
