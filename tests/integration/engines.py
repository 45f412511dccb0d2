"""Real engine hosts in processes of their own, without Ray: for tests that decide at which token a context moves."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection

import psutil

from serving.clock import SystemClock
from serving.contexts.pool_client import PoolClient
from serving.engine.channel import ChannelKeys
from serving.engine.core import ModelFiles
from serving.engine.process import EngineSpec, start_host
from serving.model_store import resolve
from serving.settings import EngineSettings
from serving.types import ClusterView, EngineInfo, PoolRole, Replica, ReplicaState
from tests.integration.conftest import CORE_NAME, HOME

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20
SETTINGS = EngineSettings(
    kv_cache_gib=0.5,
    dtype="float32",
    enforce_eager=True,
    max_num_seqs=16,
    env={"UCX_TLS": "tcp,self,sm", "UCX_NET_DEVICES": "lo"},
)


# Contexts of some hundred tokens have many full blocks of this size to copy ahead.
SMALL_BLOCKS = SETTINGS.model_copy(update={"block_size": 32})


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


class Host:
    """One engine host. Starting takes many seconds; `await_start` ends it."""

    def __init__(self, name: str, role: PoolRole, keys: ChannelKeys, settings: EngineSettings):
        spawn = multiprocessing.get_context("spawn")
        self.name, self.role = name, role
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run_host, args=(name, keys, settings, theirs))
        self._process.start()
        theirs.close()
        self._found: tuple[str, EngineInfo] | None = None

    def await_start(self) -> None:
        if self._found is None:
            assert self._pipe.poll(START_TIMEOUT_S), "the engine did not start in time"
            self._found = self._pipe.recv()

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    @property
    def core(self) -> psutil.Process:
        """The engine core's process."""
        return next(p for p in self.process.children(recursive=True) if CORE_NAME in p.name())

    @property
    def info(self) -> EngineInfo:
        assert self._found is not None
        return self._found[1]

    def replica(self, state: ReplicaState = ReplicaState.READY) -> Replica:
        assert self._found is not None
        return Replica(
            replica_id=self.name,
            pool=self.role.value,
            role=self.role,
            state=state,
            address=self._found[0],
            node_id="here",
            pid=self._process.pid or 0,
            info=self.info,
        )

    def stop(self) -> None:
        """Ask it to end; end it and all that it started when it does not."""
        family = [self.process, *self.process.children(recursive=True)] if self._process.is_alive() else []
        for process in family:
            if process.is_running() and process.status() == psutil.STATUS_STOPPED:
                process.resume()
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(STOP_TIMEOUT_S)
        for process in psutil.wait_procs(family, timeout=1)[1]:
            process.kill()
        self._process.join(STOP_TIMEOUT_S)
        self._process.close()
        self._pipe.close()


class Hosts:
    """Engines by position; `view` shows them as a cluster."""

    def __init__(self, roles: Sequence[PoolRole], settings: EngineSettings):
        self.keys = ChannelKeys.generate()
        self._settings = settings
        self._numbers = itertools.count()
        self.all = [self._start(role) for role in roles]

    def _start(self, role: PoolRole) -> Host:
        return Host(f"e{next(self._numbers)}", role, self.keys, self._settings)

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.all if host.name == name)

    def await_start(self) -> None:
        for host in self.all:
            host.await_start()

    def replace(self, name: str) -> None:
        """Stop one and start another in its place, under a new name."""
        old = self[name]
        old.stop()
        index = self.all.index(old)
        self.all[index] = self._start(old.role)
        self.all[index].await_start()

    def view(self, **states: ReplicaState) -> ClusterView:
        replicas = (host.replica(states.get(host.name, ReplicaState.READY)) for host in self.all)
        return ClusterView(version=1, replicas=tuple(replicas))


async def show(running: Hosts, client: PoolClient) -> None:
    """Let a client know all engines, and the engines each other."""
    await client.follow(running.view())
    for engine in client.engines.all():
        peers = [asdict(e.replica.info.kv) for e in client.engines.all() if e is not engine]
        await engine.link.call("warm_peers", peers, timeout_s=90)


@contextmanager
def hosts(
    roles: Sequence[PoolRole] = (PoolRole.PREFILL, PoolRole.DECODE), settings: EngineSettings = SETTINGS
) -> Iterator[Hosts]:
    """Engines of these roles, e0 and on, started side by side."""
    running = Hosts(roles, settings)
    try:
        running.await_start()
        yield running
    finally:
        for host in running.all:
            host.stop()
