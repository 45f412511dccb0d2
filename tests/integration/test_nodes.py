"""The same application on several Ray nodes, with two gateways side by side."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import ROOT, Deployment, config_file, free_port, start, stop
from tests.integration.load import stream

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.chaos, pytest.mark.timeout(400)]

STREAMS = 2
TOKENS = 200
NOTICE_S = 240
MIGRATED_WITHIN_S = 200


@pytest.fixture(scope="module")
def cluster_address() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("ray_nodes.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.stdin.close()
        cluster.wait(timeout=60)


@pytest.fixture(scope="module")
def spread(cluster_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    port = free_port()
    pools = {
        "prefill": {"role": "prefill", "resources": {"prefill_node": 0.5}},
        "decode": {"role": "decode", "resources": {"decode_node": 0.5}},
    }
    path = config_file(
        tmp_path_factory.mktemp("nodes"),
        pools=pools,
        engine={"dtype": "float32"},
        http={"proxy_location": "HeadOnly"},
        gateway={"replicas": 2},
    )
    try:
        yield start(path, port, "--ray-address", cluster_address)
    finally:
        stop(port)


def ask(deployment: Deployment, client: httpx.Client) -> str:
    body = {
        "model": deployment.model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 32,
    }
    answer = client.post(f"{deployment.base_url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_chat_crosses_nodes_through_either_gateway(spread: Deployment) -> None:
    replicas = {replica["pool"]: replica for replica in spread.status()["replicas"]}
    assert replicas["prefill"]["node"] != replicas["decode"]["node"]
    for _ in range(12):
        with httpx.Client(timeout=60) as client:  # a new connection each time, so that the proxy may choose
            assert "Paris" in ask(spread, client)
    assert spread.metric("vllm:nixl_bytes_transferred_sum", pool="decode") > 0
    gateways = spread.status()["gateways"]
    assert len(gateways) == 2
    time.sleep(2.5)  # gateways leave their metrics with the controller every 2 s
    answered = [spread.metric("ferry:requests_total", gateway=gateway) for gateway in gateways]
    assert sum(answered) >= 12 and min(answered) > 0


def drain_node(address: str, node_id: str) -> None:
    """Announce that the node will be taken away, as a cloud's notice does."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([*command, str(NOTICE_S)], check=True, capture_output=True, timeout=60)


async def until_replaced(deployment: Deployment, old: dict[str, Any]) -> None:
    """Wait until another replica of its pool serves and the old one has left."""
    deadline_s = time.monotonic() + MIGRATED_WITHIN_S
    async with httpx.AsyncClient(timeout=10) as client:
        while time.monotonic() < deadline_s:
            pool = [r for r in await deployment.replicas_now(client) if r["pool"] == old["pool"]]
            if [r["state"] for r in pool] == ["ready"] and pool[0]["replica"] != old["replica"]:
                assert pool[0]["node"] != old["node"]
                return
            await asyncio.sleep(0.5)
    raise AssertionError(f"{old['replica']} was not replaced within {MIGRATED_WITHIN_S} s")


async def test_a_node_that_ray_drains_is_left_without_a_loss(spread: Deployment, cluster_address: str) -> None:
    async with httpx.AsyncClient(timeout=120) as client:
        streams = [stream(client, spread, n, tokens=TOKENS) for n in range(STREAMS)]
        undisturbed = list(await asyncio.gather(*streams))
        (old,) = [r for r in await spread.replicas_now(client) if r["pool"] == "decode"]
        await asyncio.to_thread(drain_node, cluster_address, old["node"])
        replaced = asyncio.create_task(until_replaced(spread, old))

        async def load(index: int) -> None:
            while not replaced.done():
                assert await stream(client, spread, index, tokens=TOKENS) == undisturbed[index]

        await asyncio.gather(*(load(index) for index in range(STREAMS)))
        await replaced
    assert spread.metric("ferry:moves_total", reason="drain", mode="kv") >= 1
    assert spread.metric("ferry:moves_total", mode="replay") == 0
