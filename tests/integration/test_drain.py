"""`ferry drain` under load: every stream goes on elsewhere, KV and all, and equals its undisturbed run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.conftest import Deployment, config_file, ferry, free_port, start, stop
from tests.integration.load import stream

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(500)]

# One stream for each engine, long enough that both drains fall into it even where two engines share two cores.
STREAMS = 2
TOKENS = 900


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two engines that do both; no prefill pool, so every move here is a live one."""
    port = free_port()
    path = config_file(
        tmp_path_factory.mktemp("pair"), engine={"dtype": "float32"}, pools={"mixed": {"role": "mixed", "replicas": 2}}
    )
    try:
        yield start(path, port)
    finally:
        stop(port)


async def test_draining_either_engine_under_load_loses_nothing(pair: Deployment) -> None:
    async with httpx.AsyncClient(timeout=120) as client:
        undisturbed = await asyncio.gather(*(stream(client, pair, index, tokens=TOKENS) for index in range(STREAMS)))
        replicas = [r["replica"] for r in pair.status()["replicas"]]
        running = [asyncio.create_task(stream(client, pair, index, tokens=TOKENS)) for index in range(STREAMS)]
        await asyncio.sleep(0.5)
        for replica in replicas:
            drained = await asyncio.to_thread(ferry, "drain", replica, "--port", str(pair.port))
            assert drained.returncode == 0, drained.stdout + drained.stderr
            back = await asyncio.to_thread(ferry, "undrain", replica, "--port", str(pair.port))
            assert back.returncode == 0, back.stdout + back.stderr
        together = await asyncio.gather(*running)
    assert together == undisturbed
    assert pair.metric("ferry:moves_total", reason="drain", mode="kv") >= 1
    assert pair.metric("ferry:moves_total", mode="replay") == 0
    await asyncio.sleep(0.6)
    assert pair.idle_within(3.0) == []


def test_draining_what_is_not_there_is_refused(pair: Deployment) -> None:
    said = ferry("drain", "no-such-replica", "--port", str(pair.port))
    assert said.returncode == 2 and "no replica no-such-replica" in said.stdout + said.stderr
