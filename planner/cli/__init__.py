"""`ferry plan …` and `ferry simulate`: the planner on the command line, a file per command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from planner.cli.estimate import estimate_command
from planner.cli.memory import memory_command
from planner.cli.search import search_command
from planner.cli.simulate import simulate_command

SEARCH = "search"

__all__ = ["plan_app", "simulate_command"]


class SearchUnlessNamed(TyperGroup):
    """`ferry plan --model …` is `ferry plan search --model …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if named else [SEARCH, *args])


plan_app = typer.Typer(
    cls=SearchUnlessNamed,
    no_args_is_help=True,
    add_completion=False,
    help="Plan GPUs for an SLO. Without a command's name it is `search`.",
)
plan_app.command(SEARCH)(search_command)
plan_app.command("memory")(memory_command)
plan_app.command("estimate")(estimate_command)
