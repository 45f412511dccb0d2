"""Engines are taken away under load, by `ferry drain` and by Ray Serve itself: every stream goes on elsewhere, KV and
all, and equals its undisturbed run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import run_state
from serving.run_state import RunState
from tests.integration.conftest import HOME, ROOT, Deployment, config_file, ferry, free_port
from tests.integration.load import stream

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(500)]

TOKEN = "rolling"
STREAMS = 2
TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Ferry from a Serve config file; `declare` changes it as `serve deploy` does and waits until it is so."""

    deployment: Deployment
    process: subprocess.Popen[str]

    def declare(self, **options: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(options), file=self.process.stdin, flush=True)
        self.until_it_runs()

    def until_it_runs(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "runs\n"

    def replicas(self) -> set[str]:
        with httpx.Client(timeout=10) as client:
            return {replica["replica"] for replica in self.deployment.admin_status(client)}


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Declared]:
    port = free_port()
    path = config_file(
        tmp_path_factory.mktemp("declared"),
        device="cpu",
        http={"port": port},
        engine={"dtype": "float32"},
        pools={"mixed": {"role": "mixed", "replicas": 2}},
    )
    command = [sys.executable, str(Path(__file__).with_name("serve_config.py")), str(path), str(HOME)]
    environment = os.environ | {"FERRY_ADMIN_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            declared = Declared(deployment=Deployment(port=port), process=process)
            declared.until_it_runs()
            # So that the command line finds it.
            state = RunState(
                pid=process.pid, host="127.0.0.1", port=port, model=declared.deployment.model, admin_token=TOKEN
            )
            run_state.save(run_state.run_dir(HOME, port), state)
            yield declared
        finally:
            run_state.forget(run_state.run_dir(HOME, port))
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=90)


@pytest.fixture(scope="module")
def undisturbed(declared: Declared) -> list[tuple[str, int]]:
    """What each stream says when nothing happens."""

    async def run() -> list[tuple[str, int]]:
        async with httpx.AsyncClient(timeout=120) as client:
            streams = (stream(client, declared.deployment, n, tokens=TOKENS) for n in range(STREAMS))
            return list(await asyncio.gather(*streams))

    return asyncio.run(run())


async def under_load(declared: Declared, undisturbed: list[tuple[str, int]], change: Callable[[], None]) -> None:
    """Streams run one after another on each of two connections until the change is made; none notices."""
    async with httpx.AsyncClient(timeout=120) as client:
        changing = asyncio.create_task(asyncio.to_thread(change))

        async def load(index: int) -> int:
            rounds = 0
            while not changing.done():
                assert await stream(client, declared.deployment, index, tokens=TOKENS) == undisturbed[index]
                rounds += 1
            return rounds

        rounds = await asyncio.gather(*(load(index) for index in range(STREAMS)))
        await changing
    assert min(rounds) >= 1


def moves(deployment: Deployment, **labels: str) -> float:
    return deployment.metric("ferry:moves_total", **labels)


async def test_draining_either_engine_loses_nothing(declared: Declared, undisturbed: list[tuple[str, int]]) -> None:
    def drain_each() -> None:
        for replica in declared.replicas():
            for command in ("drain", "undrain"):
                done = ferry(command, replica, "--port", str(declared.deployment.port))
                assert done.returncode == 0, done.stdout + done.stderr

    await under_load(declared, undisturbed, drain_each)
    assert moves(declared.deployment, reason="drain", mode="kv") >= 1
    assert moves(declared.deployment, mode="replay") == 0
    await asyncio.sleep(0.6)
    assert await asyncio.to_thread(declared.deployment.idle_within, 3.0) == []


def test_draining_what_is_not_there_is_refused(declared: Declared) -> None:
    said = ferry("drain", "no-such-replica", "--port", str(declared.deployment.port))
    assert said.returncode == 2 and "no replica no-such-replica" in said.stdout + said.stderr


async def test_a_rolling_update_replaces_every_engine_and_loses_nothing(
    declared: Declared, undisturbed: list[tuple[str, int]]
) -> None:
    before = await asyncio.to_thread(declared.replicas)
    moved = moves(declared.deployment, reason="drain", mode="kv")
    await under_load(declared, undisturbed, partial(declared.declare, ray_actor_options={"num_cpus": 0.2}))
    after = await asyncio.to_thread(declared.replicas)
    assert len(before) == len(after) == 2 and not before & after
    assert moves(declared.deployment, reason="drain", mode="kv") > moved
    assert moves(declared.deployment, mode="replay") == 0


async def test_scaling_down_moves_what_runs_there(declared: Declared, undisturbed: list[tuple[str, int]]) -> None:
    before = await asyncio.to_thread(declared.replicas)
    moved = moves(declared.deployment, reason="drain", mode="kv")
    await under_load(declared, undisturbed, partial(declared.declare, num_replicas=1))
    after = await asyncio.to_thread(declared.replicas)
    assert len(after) == 1 and after < before
    assert moves(declared.deployment, reason="drain", mode="kv") > moved
    assert moves(declared.deployment, mode="replay") == 0
