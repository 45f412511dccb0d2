"""`ferry`: every command is there, and none pays for the others."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from serving.cli import PLACES, app

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", PLACES)
def test_every_command_tells_its_use(name: str) -> None:
    told = RUNNER.invoke(app, [name, "--help"], prog_name="ferry")
    assert told.exit_code == 0 and f"ferry {name}" in told.output, told.output
    assert "--install-completion" not in told.output


def test_the_whole_list_is_shown() -> None:
    told = RUNNER.invoke(app, ["--help"])
    assert told.exit_code == 0 and all(f"│ {name} " in told.output for name in PLACES), told.output


def test_a_command_that_is_not_there_is_refused() -> None:
    told = RUNNER.invoke(app, ["laod"])
    assert told.exit_code == 2 and "No such command 'laod'" in told.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "spared"),
    [
        ("load", ["serving.lifecycle", "planner.search.plan_for", "huggingface_hub"]),
        ("plan", ["serving.lifecycle", "loadtest.cli", "huggingface_hub"]),
        ("up", ["loadtest.cli", "planner.search.plan_for", "vllm", "ray"]),
    ],
)
def test_a_command_loads_no_other(command: str, spared: list[str]) -> None:
    code = (
        f"import sys; from typer.testing import CliRunner; from serving.cli import app; "
        f"CliRunner().invoke(app, ['{command}', '--help']); print([name for name in {spared} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
