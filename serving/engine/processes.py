"""What the processes of an engine do, seen from outside: CPU time, and whether one runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import AsyncMPClient

ALIVE = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)


def local_processes(core: AsyncMPClient) -> list[psutil.Process]:
    """The core's process and its workers'; none when workers run on other nodes, where nobody can see their CPU."""
    manager = core.resources.engine_manager
    if manager is None or core.vllm_config.parallel_config.distributed_executor_backend == "ray":
        return []
    cores = [psutil.Process(process.pid) for process in manager.processes]
    return cores + [child for process in cores for child in process.children(recursive=True)]


def sample(process: psutil.Process) -> tuple[float, bool]:
    """CPU seconds so far, and whether its main thread runs, or waits only for a core or for the disk: a machine that
    takes pages back makes processes read their own code again. (0, False) for a process that is gone, which the core's
    end will tell."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            return float(times.user + times.system), process.status() in ALIVE
    except psutil.NoSuchProcess:
        return 0.0, False


def child_runs(processes: Sequence[psutil.Process]) -> bool:
    """Whether a process that these have started since runs: torch lets compilers make kernels for many seconds, at the
    first request with logprobs for instance, while the core waits for them."""
    known = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if any(sample(child)[1] for child in process.children(recursive=True) if child.pid not in known):
                return True
    return False
