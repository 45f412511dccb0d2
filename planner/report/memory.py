"""The memory report as a tree, and the degrees that were tried as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from planner.devices import Device
from planner.fit import Degree
from planner.gpu_memory import SIGMAS, GpuMemoryReport
from planner.types import GIB

Tree = dict[str, object]


def best_degree(found: Sequence[Degree]) -> GpuMemoryReport | None:
    """Of the degrees that fit, the one with the fewest devices (they come in that order)."""
    return next((degree.report for degree in found if degree.fits), None)


def degree_table(found: Sequence[Degree]) -> Table:
    """One line for each degree that was tried."""
    table = Table("TP", "PP", "GPUs", "weights GiB", "KV pool GiB", "blocks", "max_num_seqs", "contexts", "fits")
    for column in table.columns[:-1]:
        column.justify = "right"
    for degree in found:
        report, devices = degree.report, str(degree.tp * degree.pp)
        if report is None:
            table.add_row(str(degree.tp), str(degree.pp), devices, "", "", "", "", "", f"no: {degree.reason}")
            continue
        table.add_row(
            str(degree.tp),
            str(degree.pp),
            str(report.engine.devices),
            f"{report.weights_bytes / GIB:.1f}",
            f"{report.kv_pool_bytes / GIB:.1f}",
            f"{report.blocks:,}",
            f"{report.max_num_seqs:,}",
            f"{report.contexts():,}",
            "yes" if degree.fits else f"no: {degree.reason}",
        )
    return table


def memory_tree(device: Device, found: Sequence[Degree], report: GpuMemoryReport | None) -> Tree:
    """For programs: the report that was asked for, and every degree in short."""
    return {
        "device": device.name,
        "fits": report is not None and report.fits,
        "report": None if report is None else report_tree(report),
        "degrees": [_degree_tree(degree) for degree in found],
    }


def report_tree(report: GpuMemoryReport) -> Tree:
    """Every figure of the arithmetic, of one device of the tightest stage."""
    capacity = report.capacity
    return {
        "model": report.shape.name or report.shape.model_type,
        "tp": report.engine.tp,
        "pp": report.engine.pp,
        "ep": report.engine.ep,
        "devices": report.engine.devices,
        "stage": report.stage,
        "memory_bytes": report.memory_bytes,
        "budget_bytes": report.budget_bytes,
        "weights_bytes": report.weights_bytes,
        "activation_bytes": report.activation_bytes,
        "graph_bytes": report.graph_bytes,
        "other_bytes": report.other_bytes,
        "kv_pool_bytes": report.kv_pool_bytes,
        "block_bytes": report.block_bytes,
        "block_tokens": report.layout.block_tokens,
        "blocks": report.blocks,
        "kv_cache_tokens": capacity.tokens,
        "max_concurrency": round(capacity.max_concurrency, 2),
        "max_model_len_tokens": report.max_model_len_tokens,
        "longest_that_fits_tokens": report.longest_that_fits_tokens,
        "max_num_seqs": report.max_num_seqs,
        "contexts_mean": report.contexts(),
        "contexts_with_headroom": report.contexts(sigmas=SIGMAS),
        "fits": report.fits,
        "remedy": report.remedy,
        "assumptions": list(report.shape.assumptions),
        "vllm_flags": list(report.flags),
    }


def _degree_tree(degree: Degree) -> Tree:
    short: Tree = {"tp": degree.tp, "pp": degree.pp, "fits": degree.fits, "reason": degree.reason}
    if degree.report is not None:
        short |= {"blocks": degree.report.blocks, "max_num_seqs": degree.report.max_num_seqs}
    return short
