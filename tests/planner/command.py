"""`ferry plan …` and `ferry simulate …` as a user types them, in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from planner import plan_app
from serving.cli import app


def plan(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "220"}).invoke(plan_app, [*arguments])


def ferry(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, [*arguments])


def tree_of(told: Result) -> Any:
    """What a command printed with --json, which must be JSON that every reader takes."""
    return json.loads(told.stdout, parse_constant=_refuse)


def refused(told: Result, *words: str) -> None:
    """The command ended with exit code 2 and one line that has all the words."""
    assert told.exit_code == 2, told.output
    assert told.stdout == "" and len(told.stderr.splitlines()) == 1, told.output
    assert [word for word in words if word not in told.stderr] == [], told.stderr


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")
