"""The same application on several Ray nodes, with two gateways side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import ROOT, Deployment, config_file, free_port, start, stop

pytestmark = [pytest.mark.slow, pytest.mark.real]


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
