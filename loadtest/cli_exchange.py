"""`ferry load import` and `ferry load export`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.cli_shared import errors_as_exit_codes
from loadtest.document import encode, finite
from loadtest.exchange.read import read_results
from loadtest.exchange.vllm_bench import write_vllm_bench
from loadtest.saved import PREFIX, read_run
from loadtest.types import LoadTestError


class Shape(StrEnum):
    VLLM = "vllm"


def register(app: typer.Typer) -> None:
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    file: Annotated[Path, typer.Argument(help="Of `vllm bench serve`, aiperf, GuideLLM or inference-perf.")],
    save_dir: Annotated[Path, typer.Option("--save-dir", "--result-dir", help="Where our documents go.")] = Path(
        "results"
    ),
) -> None:
    """Read another tool's results as ours. What they do not say is missing, and never 0."""
    with errors_as_exit_codes():
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise LoadTestError(f"{file} cannot be read: {error}") from error
        for document in read_results(raw, str(file)):
            target = save_dir / f"{PREFIX}{document.run_id}.json"
            _write(target, encode(document))
            _say(f"{target}: {document.source.tool if document.source else ''}; missing: {', '.join(document.missing)}")


def export(
    saved: Annotated[Path, typer.Argument(help="A folder of results (its newest run), or one load-….json.")],
    file: Annotated[Path, typer.Argument(help="Where to write.")],
    shape: Annotated[Shape, typer.Option("--as", help="Whose shape.")] = Shape.VLLM,
    detailed: Annotated[bool, typer.Option("--detailed", help="Each request too.")] = False,
) -> None:
    """Write results of ours as another tool would. What is not known is left out."""
    with errors_as_exit_codes():
        run = read_run(saved)
        if detailed and not run.records:
            raise LoadTestError(f"{saved} has no records, so --detailed has nothing to tell")
        tree = finite(write_vllm_bench(run.document, run.records, detailed=detailed))
        _write(file, json.dumps(tree).encode())
        _say(f"{file}: {shape.value}")


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error


def _say(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
