"""`ferry plan memory`: does a model fit, and what does its KV cache hold?"""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from planner.cli import options as flags
from planner.cli.errors import INFEASIBLE, errors_as_exit_codes
from planner.contexts import ContextLengths, context_lengths
from planner.devices import Device
from planner.engine import GPU_MEMORY_UTILIZATION, MAX_NUM_BATCHED_TOKENS, Engine
from planner.files import folder_weight_bytes, read_devices, read_workload, weight_files
from planner.fit import Degree, degrees, gpu_memory_report
from planner.gpu_memory import GpuMemoryReport
from planner.kv_blocks import GPU_BLOCK_SIZE_TOKENS
from planner.library import shape_of_model
from planner.models import ModelShape
from planner.perf.chip import TYPICAL_REACH, product_unit
from planner.perf.rows import kv_dtype
from planner.perf.work import storage
from planner.report.memory import best_degree, degree_table, memory_tree
from planner.report.values import print_lines

TENSOR_DEGREES = (1, 2, 4, 8, 16)
# Enough to say what a workload's lengths are, and quick to weigh against every degree.
SAMPLED_REQUESTS = 2000


def memory_command(
    model: flags.Model,
    system: flags.System,
    devices: flags.OwnDevices = None,
    quant: flags.Quant = None,
    kv_cache_dtype: flags.KvDtype = None,
    tp: flags.TpOrNone = None,
    pp: flags.Pp = 1,
    ep: flags.Ep = 1,
    total_gpus: flags.TotalGpus = 16,
    max_model_len: flags.MaxModelLen = None,
    max_num_batched_tokens: flags.BatchedTokens = MAX_NUM_BATCHED_TOKENS,
    max_num_seqs: flags.MaxNumSeqs = None,
    gpu_memory_utilization: flags.Utilization = GPU_MEMORY_UTILIZATION,
    block_size: flags.BlockSize = GPU_BLOCK_SIZE_TOKENS,
    isl: flags.Isl = 1000,
    osl: flags.Osl = 500,
    workload: flags.WorkloadFile = None,
    as_json: flags.AsJson = False,
) -> None:
    """Show weights, activations, KV pool and blocks, the degrees that fit, vLLM's flags. Exit code 3: does not fit."""
    with errors_as_exit_codes():
        shape = shape_of_model(model)
        device = read_devices(devices).device(system)
        engine = Engine(
            tp=tp or 1,
            pp=pp,
            ep=ep,
            quant=_runnable(shape, device, quant),
            kv_dtype=kv_cache_dtype or _kv_dtype(shape, device, quant),
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len_tokens=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS,
            max_num_seqs=max_num_seqs,
            block_size_tokens=block_size,
        )
        lengths = _lengths(workload, isl, osl)
        exact_bytes = None if quant else _exact_weight_bytes(model)
        found = _degrees(shape, engine, lengths, device, total_gpus, exact_bytes)
        report = _report(shape, engine, lengths, device, exact_bytes) if tp else best_degree(found)
    _tell(device, found, report, as_json=as_json)
    if report is None or not report.fits:
        raise typer.Exit(INFEASIBLE)


def _tell(device: Device, found: tuple[Degree, ...], report: GpuMemoryReport | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(memory_tree(device, found, report), indent=2))
        return
    console = Console()
    if report is not None:
        print_lines(console, report.lines())
        print_lines(console, ("", "vllm serve … " + " ".join(report.flags), ""))
    console.print(degree_table(found))
    if report is None:
        print_lines(
            console, ("no degree fits: choose larger devices, raise --total-gpus, or pack the weights further",)
        )


def _runnable(shape: ModelShape, device: Device, quant: str | None) -> str | None:
    """`quant` itself. Raises PlannerError if the device lacks the format's unit and vLLM has no way around it."""
    product_unit(device, storage(shape, quant), TYPICAL_REACH)
    return quant


def _kv_dtype(shape: ModelShape, device: Device, quant: str | None) -> str:
    stored = storage(shape, quant)
    return kv_dtype(stored, device.multiplies(stored.compute_dtype))


def _lengths(workload: Path | None, isl: int, osl: int) -> ContextLengths:
    if workload is None:
        return context_lengths((isl, osl))
    sample = read_workload(workload).sample(0, SAMPLED_REQUESTS)
    return ContextLengths(requests=tuple(zip(sample.isl.tolist(), sample.osl.tolist(), strict=True)))


def _exact_weight_bytes(model: str) -> int | None:
    """What the files of a local model hold; None where there are none."""
    folder = Path(model)
    return folder_weight_bytes(folder) if weight_files(folder) else None


def _degrees(
    shape: ModelShape,
    engine: Engine,
    lengths: ContextLengths,
    device: Device,
    most_devices: int,
    exact_bytes: int | None,
) -> tuple[Degree, ...]:
    widest = min(device.node_devices, most_devices)
    return degrees(
        shape,
        engine,
        lengths,
        memory_bytes=device.memory_bytes,
        max_devices=most_devices,
        tensor_degrees=tuple(degree for degree in TENSOR_DEGREES if degree <= widest),
        device=device.label,
        exact_weight_bytes=exact_bytes,
    )


def _report(
    shape: ModelShape, engine: Engine, lengths: ContextLengths, device: Device, exact_bytes: int | None
) -> GpuMemoryReport:
    return gpu_memory_report(
        shape,
        engine,
        lengths,
        memory_bytes=device.memory_bytes,
        device=device.label,
        exact_weight_bytes=exact_bytes,
    )
