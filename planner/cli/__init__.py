"""`ferry plan …` and `ferry simulate`: the planner on the command line, a file per command."""

from __future__ import annotations

import typer

from planner.cli.estimate import estimate_
from planner.cli.memory import memory

plan_app = typer.Typer(no_args_is_help=True, help="Plan GPUs for an SLO: search, `memory`, `estimate`.")
plan_app.command("memory")(memory)
plan_app.command("estimate")(estimate_)
