"""`ferry plan estimate`: what one deployment does under one load, or every row of a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from planner.cli import options as flags
from planner.cli.errors import INFEASIBLE, errors_as_exit_codes
from planner.files import read_devices, read_table, write_text
from planner.perf.calibration import Calibration
from planner.perf.estimate import WRITTEN, estimate, estimate_rows
from planner.perf.shipped import read_calibration, shipped_calibration
from planner.perf.work import Layout
from planner.report.estimate import estimate_lines, estimate_table, estimate_tree, servable
from planner.report.values import print_lines
from planner.types import PlannerError

# A column of the table that an estimate is written under keeps what stood there under this name.
KEPT_AS = "measured_"


def estimate_command(
    model: flags.Model = "",
    system: flags.System = "",
    devices: flags.OwnDevices = None,
    quant: flags.Quant = None,
    kv_cache_dtype: flags.KvDtype = None,
    tp: flags.Tp = 1,
    pp: flags.Pp = 1,
    dp: flags.Dp = 1,
    ep: flags.Ep = 1,
    replicas: flags.Replicas = 1,
    backend: flags.Backend = "vllm",
    max_num_batched_tokens: flags.BatchedTokens = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    calibration: flags.CalibrationFile = None,
    isl: flags.Isl = 1000,
    osl: flags.Osl = 500,
    concurrency: flags.Concurrency = None,
    request_rate: flags.RequestRate = None,
    batch: flags.Batch = None,
    rows: flags.Rows = None,
    out: flags.Out = None,
    as_json: flags.AsJson = False,
) -> None:
    """Predict TTFT and TPOT of one deployment under one load, or of every row of --rows. Exit code 3: overloaded."""
    with errors_as_exit_codes():
        learnt = read_calibration(calibration) if calibration else shipped_calibration()
        if rows is not None:
            _estimate_table(rows, out, learnt, own_devices=devices, as_json=as_json)
            return
        for flag, value in (("--model", model), ("--system", system)):
            if not value:
                raise PlannerError("settings", flag, None, "it is needed", f"give {flag}, or --rows with a table")
        device = read_devices(devices).device(system)
        answer = estimate(
            model, device, isl=isl, osl=osl, concurrency=concurrency, request_rate=request_rate, batch=batch,
            tp=tp, pp=pp, dp=dp, ep=ep, replicas=replicas, quant=quant, kv_cache_dtype=kv_cache_dtype, engine=backend,
            max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs, calibration=learnt,
        )  # fmt: skip
        count = Layout(tp=tp, pp=pp, dp=dp, ep=ep).devices * replicas
        tree = json.dumps(estimate_tree(answer, devices=count), indent=2)
        if out is not None:
            write_text(out, tree + "\n")
    if as_json:
        typer.echo(tree)
    else:
        console = Console()
        layout = f"TP {tp}, PP {pp}, DP {dp}, EP {ep}, {replicas} replica(s)"
        print_lines(console, (f"{model} on {count} x {device.label}: {layout}; {isl:,} + {osl:,} tokens",))
        console.print(estimate_table(answer))
        print_lines(console, estimate_lines(answer, devices=count))
    if not servable(answer):
        raise typer.Exit(INFEASIBLE)


def _estimate_table(
    path: Path, out: Path | None, learnt: Calibration, *, own_devices: Path | None, as_json: bool
) -> None:
    columns, rows = read_table(path)
    found = estimate_rows(rows, calibration=learnt, devices=read_devices(own_devices))
    kept = {column: f"{KEPT_AS}{column}" if column in WRITTEN else column for column in columns}
    written = [
        {kept[column]: row[column] for column in columns} | answer for row, answer in zip(rows, found, strict=True)
    ]
    as_json = as_json or (out is not None and out.suffix == ".json")
    text = json.dumps(written, indent=1) + "\n" if as_json else _csv([*kept.values(), *WRITTEN], written)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
    failed = sum(bool(answer["error"]) for answer in found)
    typer.echo(f"{len(found) - failed} of {len(found)} rows estimated, {failed} with a reason under `error`", err=True)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
