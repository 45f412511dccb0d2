"""`ferry model pull` and `ferry model list`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from serving import model_store
from serving.errors import FerryError, describe

model_app = typer.Typer(help="Fetch and list models.", no_args_is_help=True, add_completion=False)

Home = Annotated[
    Path,
    typer.Option("--home", envvar="FERRY_HOME", default_factory=model_store.default_home, help="Ferry's own folder."),
]


@model_app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH|HUB_ID", help="For example smollm2-135m.")],
    home: Home,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file's sha256 too.")] = False,
) -> None:
    """Fetch a model and check it. Prints its folder."""
    with errors_as_exit_codes(), progress_bar() as progress:
        folder = model_store.resolve(model, home, progress, verify=verify)
    Console(stderr=True).print(f"{folder.name}: {folder.source}, {folder.weight_bytes / 1e6:,.0f} MB of weights")
    typer.echo(folder.path)


@model_app.command("list")
def list_(
    home: Home,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the built-in models and which of them are here."""
    models = model_store.list_models(home)
    if as_json:
        typer.echo(json.dumps([asdict(model) for model in models], default=str, indent=2))
        return
    table = Table("name", "here", "MB", "licence", "what it is")
    for model in models:
        here = "yes" if model.installed else "no"
        table.add_row(model.name, here, f"{model.size_bytes / 1e6:,.0f}", model.licence, model.summary)
    Console().print(table)


@contextmanager
def progress_bar() -> Iterator[model_store.Progress]:
    """A bar on stderr, gone at the end. Where stderr is no terminal, one line per stage."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=None)
        last_stage = ""

        def show(stage: str, fraction: float | None) -> None:
            nonlocal last_stage
            if stage != last_stage and not console.is_terminal:
                console.print(stage)
            last_stage = stage
            bar.update(task, description=stage, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield show


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """A FerryError becomes two lines on stderr and its exit code, with no traceback."""
    try:
        yield
    except FerryError as error:
        typer.echo(describe(error), err=True)
        raise typer.Exit(error.exit_code) from error
