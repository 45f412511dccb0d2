"""Start an engine host in this process: ports, environment, core, peers. Ray's door and the tests both enter here."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

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


async def start_host(spec: EngineSpec, *, replica_id: str, host: str, keys: ChannelKeys, clock: Clock):  # type: ignore[no-untyped-def]
    """Start the core and open it to gateways; returns the `EngineHost`.

    Raises:
        EngineStartFailed: with what vLLM's core said last.
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
        client = core.start(config)
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
