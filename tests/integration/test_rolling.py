"""Ray Serve itself takes engines away under load: by a rolling update of all of them, and by scaling down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import HOME, ROOT, Deployment, config_file, free_port
from tests.integration.load import stream

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(500)]

TOKEN = "rolling"
STREAMS = 2
TOKENS = 400


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
        headers = {"authorization": f"Bearer {TOKEN}"}
        status = httpx.get(f"{self.deployment.base_url}/admin/v1/status", headers=headers, timeout=10).json()
        return {replica["replica"] for replica in status["replicas"]}


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
            yield declared
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=90)


async def changed_under_load(declared: Declared, **options: Any) -> None:
    """Streams run one after another on each of two connections until what is declared runs; all are undisturbed."""
    deployment = declared.deployment
    async with httpx.AsyncClient(timeout=120) as client:
        undisturbed = await asyncio.gather(*(stream(client, deployment, n, tokens=TOKENS) for n in range(STREAMS)))
        changing = asyncio.create_task(asyncio.to_thread(declared.declare, **options))

        async def load(index: int) -> int:
            rounds = 0
            while not changing.done():
                assert await stream(client, deployment, index, tokens=TOKENS) == undisturbed[index]
                rounds += 1
            return rounds

        rounds = await asyncio.gather(*(load(index) for index in range(STREAMS)))
        await changing
    assert min(rounds) >= 1


def moves(deployment: Deployment, **labels: str) -> float:
    return deployment.metric("ferry:moves_total", **labels)


async def test_a_rolling_update_replaces_every_engine_and_loses_nothing(declared: Declared) -> None:
    before = await asyncio.to_thread(declared.replicas)
    await changed_under_load(declared, ray_actor_options={"num_cpus": 0.2})
    after = await asyncio.to_thread(declared.replicas)
    assert len(before) == len(after) == 2 and not before & after
    assert moves(declared.deployment, reason="drain", mode="kv") >= 1
    assert moves(declared.deployment, mode="replay") == 0


async def test_scaling_down_moves_what_runs_there(declared: Declared) -> None:
    before = await asyncio.to_thread(declared.replicas)
    moved = moves(declared.deployment, reason="drain", mode="kv")
    await changed_under_load(declared, num_replicas=1)
    after = await asyncio.to_thread(declared.replicas)
    assert len(after) == 1 and after < before
    assert moves(declared.deployment, reason="drain", mode="kv") > moved
    assert moves(declared.deployment, mode="replay") == 0
