"""`ferry plan …` and `ferry simulate`: the planner on the command line, a file per command."""

from __future__ import annotations

import typer

from planner.cli.estimate import estimate_command
from planner.cli.memory import memory_command
from planner.cli.simulate import simulate_command

__all__ = ["plan_app", "simulate_command"]


plan_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Plan GPUs for an SLO.",
)
plan_app.command("memory")(memory_command)
plan_app.command("estimate")(estimate_command)
