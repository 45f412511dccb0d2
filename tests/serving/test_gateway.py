"""A gateway follows the cluster, whatever a view holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway import gateway
from serving.pools.controller import Controller
from serving.types import ClusterView
from tests.fakes import replica, until
from tests.serving.gateways import Gateways, write_model


class SometimesWrong(Controller):
    """Its next view may have an address that cannot even be tried."""

    wrong = False

    async def watch(self, known_version: int, timeout_s: float) -> ClusterView:
        if self.wrong:
            self.wrong = False
            return ClusterView(version=10_000, replicas=(replica("bad", address="nonsense"),))
        return await super().watch(known_version, timeout_s)


async def test_a_view_that_cannot_be_followed_blinds_no_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "RETRY_S", 0.01)
    cluster = Gateways(write_model(tmp_path), controller=SometimesWrong)
    assert isinstance(cluster.controller, SometimesWrong)
    try:
        await cluster.start("d1", "d2")
        cluster.controller.wrong = True
        client = await cluster.open("g1")
        assert not cluster.controller.wrong
        assert (await client.get("/ready")).status_code == 200
    finally:
        await cluster.close()


async def test_a_gateway_that_was_ready_stays_so_while_any_engine_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "REPORT_INTERVAL_S", 0.01)
    cluster = Gateways(write_model(tmp_path), needs_prefill=True)
    try:
        await cluster.start("d1", "p1")
        client = await cluster.open("g1")
        await asyncio.sleep(0.1)
        await cluster.controller.drain("p1")
        await until(lambda: len(cluster.pool("g1").engines.candidates()) == 1)
        assert (await client.get("/ready")).status_code == 200, "nobody asked before"
    finally:
        await cluster.close()
