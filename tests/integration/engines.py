"""Real engine hosts in processes of their own, without Ray: for tests that decide at which token a context moves."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.engine.core import ModelFiles
from serving.engine.process import EngineSpec, start_host
from serving.model_store import resolve
from serving.settings import EngineSettings
from serving.types import ClusterView, EngineInfo, PoolRole, Replica, ReplicaState
from tests.integration.conftest import HOME

START_TIMEOUT_S = 180
SETTINGS = EngineSettings(
    kv_cache_gib=0.5,
    dtype="float32",
    enforce_eager=True,
    max_num_seqs=16,
    env={"UCX_TLS": "tcp,self,sm", "UCX_NET_DEVICES": "lo"},
)


def model_files() -> ModelFiles:
    return ModelFiles(path=resolve("smollm2-135m", HOME).path, served_name="smollm2-135m")


def _run_host(name: str, keys: ChannelKeys, settings: EngineSettings, pipe: Connection) -> None:
    async def main() -> None:
        spec = EngineSpec(model=model_files(), settings=settings, pool="test", on_cpu=True)
        host = await start_host(spec, replica_id=name, host="127.0.0.1", keys=keys, clock=SystemClock())
        pipe.send((host.address, host.info))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await host.close()

    asyncio.run(main())


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Running hosts: e0 prefills, the others decode."""

    keys: ChannelKeys
    addresses: tuple[tuple[str, EngineInfo], ...]
    pids: tuple[int, ...]

    def view(self, **states: ReplicaState) -> ClusterView:
        replicas = (
            Replica(
                replica_id=f"e{index}",
                pool="prefill" if index == 0 else "decode",
                role=PoolRole.PREFILL if index == 0 else PoolRole.DECODE,
                state=states.get(f"e{index}", ReplicaState.READY),
                address=address,
                node_id="here",
                pid=pid,
                info=info,
            )
            for index, ((address, info), pid) in enumerate(zip(self.addresses, self.pids, strict=True))
        )
        return ClusterView(version=1, replicas=tuple(replicas))


@contextmanager
def hosts(count: int, settings: EngineSettings = SETTINGS) -> Iterator[Hosts]:
    """`count` engines, started side by side."""
    keys, spawn = ChannelKeys.generate(), multiprocessing.get_context("spawn")
    running: list[tuple[Any, Connection]] = []
    try:
        for index in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_run_host, args=(f"e{index}", keys, settings, theirs))
            process.start()
            running.append((process, ours))
        addresses = []
        for _, pipe in running:
            assert pipe.poll(START_TIMEOUT_S), "the engine did not start in time"
            addresses.append(pipe.recv())
        yield Hosts(keys=keys, addresses=tuple(addresses), pids=tuple(p.pid for p, _ in running))
    finally:
        for process, pipe in running:
            if process.is_alive():
                pipe.send(None)
        for process, _ in running:
            process.join(20)
            if process.is_alive():
                process.kill()
