"""What Ferry takes from the machine with configs/local.yaml: memory, idle CPU, time to start; and what it leaves.

    python tests/bench/footprint.py

The start is measured warm: the model is converted, and files are in the page cache (run it twice).
"""

from __future__ import annotations

import sys
import time

import psutil
from parts.children import BenchFailed, busy_share
from parts.ferry import Deployment, deployed, end_on_sigterm, local_settings, marked, title

GIB = 1 << 30
MEMORY_AIM_GIB = 10.0
IDLE_AIM_CORES = 0.25
START_AIM_S = 90.0
SETTLE_S = 8.0
IDLE_S = 15.0
LEAVE_TIMEOUT_S = 5.0


def main() -> int:
    end_on_sigterm()
    try:
        with deployed(local_settings()) as deployment:
            _verdict("start to ready", deployment.start_s, START_AIM_S, "s")
            time.sleep(SETTLE_S)
            _idle_cpu(deployment)
            _memory(deployment)
    except BenchFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return _leftovers(deployment)


def _idle_cpu(deployment: Deployment) -> None:
    """CPU per process, as told by one sample of all, then in all."""
    processes = deployment.processes()
    before = {process.pid: process.cpu_times() for process in processes}
    total = busy_share(processes, IDLE_S, time.sleep)
    print(f"\nCPU while idle for {IDLE_S:.0f} s, processes above 0.2% of a core:")
    for process in processes:
        used = process.cpu_times()
        share = (used.user + used.system - before[process.pid].user - before[process.pid].system) / IDLE_S
        if share > 0.002:
            print(f"  {100 * share:6.1f} %  {title(process)}")
    _verdict("idle CPU", 100 * total, 100 * IDLE_AIM_CORES, "% of a core")


def _memory(deployment: Deployment) -> None:
    """Proportional set size: shared pages are counted once over all processes."""
    sizes = sorted(((p.memory_full_info().pss, title(p)) for p in deployment.processes()), reverse=True)
    print("\nPSS per process:")
    for size, name in sizes:
        print(f"  {size / GIB:6.2f} GiB  {name}")
    _verdict(f"PSS of {len(sizes)} processes", sum(size for size, _ in sizes) / GIB, MEMORY_AIM_GIB, "GiB")


def _leftovers(deployment: Deployment) -> int:
    left = psutil.wait_procs(marked(deployment.mark), timeout=LEAVE_TIMEOUT_S)[1]
    print(f"\nstill running after `ferry down`: {len(left) or 'nothing'}")
    for process in left:
        print(f"  {process.pid}  {title(process)}")
    return 1 if left else 0


def _verdict(what: str, value: float, aim: float, unit: str) -> None:
    print(f"{what}: {value:.2f} {unit} (aim ≤ {aim:g} {unit}: {'met' if value <= aim else 'MISSED'})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
