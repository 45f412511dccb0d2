"""Start an engine host in this process: ports, environment, core, peers. Ray's door and the tests both enter here."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from serving.clock import Clock
from serving.engine import core
from serving.engine.channel import ChannelKeys
from serving.engine.core import CPU_ENGINE_ENV, EAGER_ENV, ENGINE_ENV, ModelFiles
from serving.engine.plugin import ENDS_WITH_PARENT
from serving.errors import EngineStartFailed
from serving.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """All that one engine needs to know to start."""

    model: ModelFiles
    settings: EngineSettings
    pool: str
    on_cpu: bool


def free_port(host: str) -> int:
    """A TCP port that is free now. NIXL's side channel takes a number, not a socket, so a race remains."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def engine_environment(spec: EngineSpec, *, host: str, side_channel_port: int) -> Mapping[str, str]:
    """Environment of the engine's processes, as they inherit it."""
    return {
        **ENGINE_ENV,
        ENDS_WITH_PARENT: "1",
        **(CPU_ENGINE_ENV if spec.on_cpu else {}),
        **(EAGER_ENV if spec.on_cpu and spec.settings.enforce_eager else {}),
        **spec.settings.env,
        "VLLM_NIXL_SIDE_CHANNEL_HOST": host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel_port),
    }


@contextmanager
def ended_after(limit_s: float) -> Iterator[None]:
    """Kill the processes that are started inside once they take too long to be ready. vLLM waits for them without a
    limit and lets nothing else happen meanwhile, so a thread watches.

    Raises:
        EngineStartFailed: when it came to that.
    """
    before = {process.pid for process in multiprocessing.active_children()}
    late = threading.Event()

    def end() -> None:
        late.set()
        for process in multiprocessing.active_children():
            if process.pid is not None and process.pid not in before:
                _kill_with_children(process.pid)

    watch = threading.Timer(limit_s, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    except Exception:  # whatever vLLM raises when its core is killed
        if not late.is_set():
            raise
    finally:
        watch.cancel()
    if late.is_set():
        raise EngineStartFailed(
            f"the engine has not loaded within {limit_s:.0f} s (engine.start_timeout_s)",
            remedy="raise that, or see in the engine's log what it waits for",
        )


def _kill_with_children(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()


async def start_host(spec: EngineSpec, *, replica_id: str, host: str, keys: ChannelKeys, clock: Clock):  # type: ignore[no-untyped-def]
    """Start the core and open it to gateways; returns the `EngineHost`.

    Raises:
        EngineStartFailed: with what vLLM raised as its cause, or without one when the core took too long.
    """
    side_channel_port = free_port(host)
    os.environ.update(engine_environment(spec, host=host, side_channel_port=side_channel_port))
    # vLLM reads the environment when it is imported, so these imports wait for it.
    from vllm.utils.gc_utils import freeze_gc_heap

    from serving.engine.host import EngineHost
    from serving.engine.meter import EngineMeter

    args = core.engine_args(spec.model, spec.settings, on_cpu=spec.on_cpu, kv_engine_id=core.new_kv_engine_id())
    try:
        config = await asyncio.to_thread(core.engine_config, args)
        with ended_after(spec.settings.start_timeout_s):
            client = core.start(config)
    except EngineStartFailed:
        raise
    except Exception as error:  # vLLM raises many kinds; each is a failed start with its own cause
        raise EngineStartFailed(
            f"{type(error).__name__}: {error}", remedy="read the cause above; it is vLLM's own"
        ) from error
    info = await core.describe(client, host=host, side_channel_port=side_channel_port)
    # A full collection over all that vLLM imported would stop the relay for tenths of a second.
    freeze_gc_heap()
    return EngineHost(
        replica_id=replica_id,
        core=client,
        info=info,
        host=host,
        keys=keys,
        clock=clock,
        meter=EngineMeter(config, replica_id=replica_id, pool=spec.pool),
    )
