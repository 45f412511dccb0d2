"""Two engines and the process that moves streams between them, joined by one link; no Ray, no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from parts import namespaces
from parts.children import Child, answer_all
from parts.ferry import HOME, local_settings
from parts.namespaces import Place

from serving.clock import SystemClock
from serving.engine.channel import ChannelKeys
from serving.engine.core import ENGINE_ENV, ModelFiles
from serving.engine.process import EngineSpec, start_host
from serving.model_store import resolve
from serving.settings import EngineSettings
from serving.types import PoolRole, Replica, ReplicaState

HUB, ENGINES = "hub", ("e0", "e1")
LOG_TO_STDERR = {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}  # the table is alone on stdout
LOOPBACK = Place(name=None, address="127.0.0.1", device="lo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between the engines. Without a rate: this machine's loopback."""

    name: str
    mbit_per_s: int | None = None
    env: dict[str, str] = field(default_factory=dict)


LOOPBACK_LINK = Link(name="loopback", env={"UCX_TLS": "tcp,self,sm"})


def throttled_link(mbit_per_s: int) -> Link:
    """Without shared memory, which would carry KV past the throttle: both engines are on one machine after all."""
    return Link(name=f"{mbit_per_s} Mbit", mbit_per_s=mbit_per_s, env={"UCX_TLS": "tcp,self"})


def engine_settings(block_size_tokens: int) -> EngineSettings:
    """configs/local.yaml, with room for eight long contexts and for the tokens that they make while they are copied."""
    own = {"block_size": block_size_tokens, "max_model_len": 8192, "max_num_seqs": 16, "kv_cache_gib": 1.5}
    return EngineSettings.model_validate(local_settings()["engine"] | own)


@contextlib.contextmanager
def mover_on(link: Link, settings: EngineSettings) -> Iterator[tuple[Child, Replica]]:
    """A process that answers `CellJob`s over two engines on this link, and one of the engines.

    Raises:
        NoNamespaces: when the link needs network namespaces and there are none.
        BenchFailed: when something does not start.
    """
    keys, folder = ChannelKeys.generate(), resolve(local_settings()["model"], HOME)
    model = ModelFiles(path=folder.path, served_name=folder.name)
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(_places(link))

        def child(*args: Any) -> Any:
            made = Child(*args)
            stack.callback(made.stop)
            return made

        specs = {
            name: EngineSpec(
                model=model,
                settings=settings.model_copy(update={"env": settings.env | link.env | _env(places[name])}),
                pool="mixed",
                on_cpu=True,
            )
            for name in ENGINES
        }
        engines = [child(engine_main, specs[name], name, places[name], keys) for name in ENGINES]
        replicas = tuple(_replica(name, engine) for name, engine in zip(ENGINES, engines, strict=True))
        yield child(mover_main, places[HUB], keys, replicas), replicas[0]


@contextlib.contextmanager
def _places(link: Link) -> Iterator[dict[str, Place]]:
    if link.mbit_per_s is None:
        yield dict.fromkeys((HUB, *ENGINES), LOOPBACK)
    else:
        with namespaces.star(HUB, ENGINES, mbit_per_s=link.mbit_per_s) as places:
            yield places


def _env(place: Place) -> dict[str, str]:
    return {"UCX_NET_DEVICES": place.device, "VLLM_HOST_IP": place.address, **LOG_TO_STDERR}


def _replica(name: str, engine: Child) -> Replica:
    address, info = engine.said
    return Replica(
        replica_id=name,
        pool="mixed",
        role=PoolRole.MIXED,  # a prefill engine is never chosen to decode
        state=ReplicaState.READY,
        address=address,
        node_id=name,
        pid=engine.pid,
        info=info,
    )


def engine_main(conn: Connection, spec: EngineSpec, name: str, place: Place, keys: ChannelKeys) -> None:
    """The process of an engine host: says its address and what it is, and serves until the pipe closes."""
    namespaces.enter(place)
    asyncio.run(_serve_engine(conn, spec, name, place, keys))


async def _serve_engine(conn: Connection, spec: EngineSpec, name: str, place: Place, keys: ChannelKeys) -> None:
    host = await start_host(spec, replica_id=name, host=place.address, keys=keys, clock=SystemClock())
    conn.send((host.address, host.info))

    async def nothing(question: Any) -> None:
        raise AssertionError(f"an engine is asked nothing: {question!r}")

    await answer_all(conn, nothing)
    await host.close()


def mover_main(conn: Connection, place: Place, keys: ChannelKeys, replicas: tuple[Replica, Replica]) -> None:
    """The process of the mover."""
    namespaces.enter(place)
    os.environ.update(ENGINE_ENV | LOG_TO_STDERR)
    # vLLM reads the environment when it is imported; engines, which import this file too, set more of it.
    from parts.mover import serve

    uvloop.run(serve(conn, keys, replicas))
