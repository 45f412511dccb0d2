"""`ferry profile`: measure a running deployment at 6 to 12 chosen loads, and write what the planner calibrates on.

Exit codes: 0 the profile is written, 2 it could not be measured as a whole or not be written, 130 it was interrupted:
the loads that were measured until then are kept, and the planner reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from loadtest import cli_options as flags
from loadtest.cli_groups import TargetFlags, grouped
from loadtest.cli_shared import errors_as_exit_codes
from loadtest.profile import Measured, choose_trials, facts_of, measure
from loadtest.profile import options as own
from loadtest.types import LoadTestError
from planner import Estimate, PlannerError, Profile, calibrated_on, estimates_at


@dataclass(frozen=True, kw_only=True)
class PlainTargetFlags(TargetFlags):
    """Text completions by default: a chat template would add tokens to every prompt."""

    endpoint: flags.Endpoint = "/v1/completions"


@grouped
def profile(
    system: own.System,
    where: PlainTargetFlags,
    shape: own.Shape = "",
    kind: own.DeviceKind = "gpu",
    memory_gib: own.MemoryGib = None,
    tp: own.Tp = 1,
    pp: own.Pp = 1,
    dp: own.Dp = 1,
    ep: own.Ep = 1,
    replicas: own.Replicas = 1,
    quant: own.Quant = "",
    max_num_batched_tokens: own.Budget = None,
    max_num_seqs: own.Sequences = None,
    max_model_len: own.MaxLen = None,
    kv_blocks: own.KvBlocks = None,
    block_size: own.BlockSize = None,
    enforce_eager: own.Eager = False,
    points: own.Count = 8,
    osl: own.Osl = 64,
    seed: own.Seed = 0,
    timeout_s: flags.Timeout = 600.0,
    out: own.Out = Path("profile.yaml"),
) -> None:
    """Measure a running deployment with a few well-chosen loads; the planner then calibrates on what is written."""
    console = Console()
    with errors_as_exit_codes("ferry profile"):
        target = where.target()
        facts = facts_of(target)
        served = where.model or facts.model
        if not served:
            raise LoadTestError(f"{where.base_url} names no model; give --model")
        deployment = own.Deployment(
            model=shape or served, system=system, kind=kind, memory_gib=memory_gib, tp=tp, pp=pp, dp=dp, ep=ep,
            replicas=replicas, quant=quant, max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs,
            max_model_len_tokens=max_model_len, kv_blocks=kv_blocks, block_size_tokens=block_size, eager=enforce_eager,
        )  # fmt: skip
        deployment.check(facts)
        _check(out)
        trials = choose_trials(deployment.reach(facts), count=points, osl=osl)
        if len(trials) < points:
            told = f"only {len(trials)} of {points} loads: on an engine of this size the others are the same"
            console.print(told, style="yellow", highlight=False)
        measured = measure(
            target, served, trials, seed=seed, timeout_s=timeout_s, on_point=lambda one: _tell(one, console)
        )
        written = deployment.profile(facts, measured.done, on=date.today())
        _write(out, yaml.safe_dump(written.document(), sort_keys=False))
        console.print(f"saved: {out}", markup=False, highlight=False, soft_wrap=True)
        _judge(written, console)
        if measured.stopped is not None:
            kept = f"{len(measured.done)} of {len(trials)} loads were measured and are in {out}"
            raise type(measured.stopped)(f"{measured.stopped}; {kept}")


def _check(file: Path) -> None:
    """Better before the loads than after them. What is in it stays. Raises LoadTestError."""
    new = not file.exists()
    try:
        file.open("ab").close()
        if new:
            file.unlink()
    except OSError as error:
        raise LoadTestError(f"--out {file} cannot be written: {error}") from error


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{file} cannot be written: {error}") from error


def _tell(one: Measured, console: Console) -> None:
    point = one.point
    tpot = f"{point.tpot_ms.mean:.1f}" if point.tpot_ms else "-"
    console.print(
        f"{point.concurrency:>5.0f} clients x {point.isl:>5.0f} + {point.osl:>4.0f} tokens: "
        f"TTFT {point.ttft_ms.mean:.1f} ms, TPOT {tpot} ms, {point.out_tok_s:.1f} tokens/s",
        highlight=False,
    )
    for doubt in one.doubts:
        console.print(f"      {doubt}", style="yellow", markup=False, highlight=False)


def _judge(written: Profile, console: Console) -> None:
    """What the planner made of such loads before it saw the profile, and what it makes of them now."""
    try:
        calibration = calibrated_on(written)
        before, after = estimates_at(written), estimates_at(written, calibration)
    except PlannerError as error:
        console.print(f"the planner cannot calibrate on it: {error}; {error.remedy}", style="yellow", markup=False)
        return
    table = Table("load", "TTFT ms", "shipped", "calibrated", "TPOT ms", "shipped", "calibrated", title_justify="left")
    for (point, old), (_, new) in zip(before, after, strict=True):
        tpot = f"{point.tpot_ms.mean:.1f}" if point.tpot_ms else "-"
        table.add_row(
            f"{point.concurrency or point.request_rate:.0f} x {point.isl:.0f}",
            *_row(f"{point.ttft_ms.mean:.1f}", old.ttft.mean_ms, new.ttft.mean_ms),
            *_row(tpot, old.tpot.mean_ms, new.tpot.mean_ms),
        )
    console.print(table)
    console.print(_error_bar([new for _, new in after]), markup=False, highlight=False)


def _row(measured: str, *estimates_ms: float) -> tuple[str, ...]:
    return (measured, *(f"{one_ms:.1f}" for one_ms in estimates_ms))


def _error_bar(estimates: Sequence[Estimate]) -> str:
    sigma = estimates[0].sigma
    return f"error to expect here from now on (one sigma): TPOT {sigma.tpot:.0%}, TTFT {sigma.ttft:.0%}"
