"""`ferry`: all commands. Each is loaded when it is asked for: a load test should not wait for what `ferry up` needs."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

DEPLOYMENT_COMMANDS = ("up", "down", "status", "drain", "undrain", "chat")
# Name of the command -> module and name of its Typer application, or of the function that is the command.
PLACES = MappingProxyType(
    {
        **dict.fromkeys(DEPLOYMENT_COMMANDS, "serving.deployment_cli:deployment_app"),
        "model": "serving.model_cli:model_app",
        "plan": "planner:plan_app",
        "simulate": "planner:simulate_command",
        "load": "loadtest.cli:load_app",
        "profile": "loadtest.cli_profile:profile",
    }
)


class OnDemand(TyperGroup):
    """A group whose commands are loaded one by one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        place = PLACES.get(cmd_name)
        if place is None:
            return None
        module, name = place.split(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(found)
            return get_command(alone)
        command: Any = get_command(found)
        command.name = cmd_name
        return command.commands.get(cmd_name, command)


app = typer.Typer(cls=OnDemand, no_args_is_help=True, add_completion=False)


@app.callback()
def ferry() -> None:
    """Serve open-weight LLMs on GPUs that can vanish."""
