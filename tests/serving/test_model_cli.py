"""The model commands: what people and programs see."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from serving.model_cli import model_app

NAME = "smollm2-135m"


def test_cli_errors_are_two_lines(tmp_path: Path) -> None:
    result = CliRunner().invoke(model_app, ["pull", "smollm2"], env={"FERRY_HOME": str(tmp_path)})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2].startswith("error: no model is named 'smollm2'")
    assert result.stderr.splitlines()[-1].startswith("  remedy: did you mean")
    assert "Traceback" not in result.stderr


def test_cli_lists_for_people_and_programs(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path)]
    assert NAME in CliRunner().invoke(model_app, ["list", *home]).stdout
    (listed,) = json.loads(CliRunner().invoke(model_app, ["list", "--json", *home]).stdout)
    assert (listed["name"], listed["installed"], listed["size_bytes"]) == (NAME, False, 0)
