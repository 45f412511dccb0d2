"""The admin API over two real gateways and the controller: contexts and moves through whichever gateway answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.types import ClusterView, ReplicaState
from tests.fakes import until
from tests.serving.gateways import BEGIN, MODEL, Gateways, words, write_model

TOKENS, BEFORE = 12, 4
WAIT_S = 5.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Gateways]:
    """Two decode engines, two gateways."""
    cluster = Gateways(write_model(tmp_path))
    await cluster.start("d1", "d2")
    await cluster.open("g1")
    await cluster.open("g2")
    yield cluster
    await cluster.close()


async def ask(cluster: Gateways, gateway_id: str, tokens: int = BEFORE) -> asyncio.Task[httpx.Response]:
    """A request that one gateway owns, with that many tokens already."""
    body = {"model": MODEL, "prompt": f"{BEGIN} w8 w9", "max_tokens": TOKENS}
    asking = asyncio.create_task(cluster.clients[gateway_id].post("/v1/completions", json=body))
    context = await shown(cluster, gateway_id, gateway=gateway_id)
    cluster.engines[context["replica"]].allow(tokens)
    await shown(cluster, gateway_id, gateway=gateway_id, output_tokens=tokens)
    return asking


async def contexts(cluster: Gateways, gateway_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await cluster.clients[gateway_id].get("/admin/v1/contexts")).json()
    return found


async def shown(cluster: Gateways, gateway_id: str, **fields: Any) -> dict[str, Any]:
    """The context that a gateway shows on an engine with these fields, as soon as it does."""
    deadline_s = cluster.clock.now_s() + WAIT_S
    while cluster.clock.now_s() < deadline_s:
        for context in await contexts(cluster, gateway_id):
            if context["replica"] is not None and fields.items() <= context.items():
                return context
        await asyncio.sleep(0.02)
    raise AssertionError(f"{gateway_id} shows no context with {fields}")


async def move(cluster: Gateways, gateway_id: str, request_id: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await cluster.clients[gateway_id].post(f"/admin/v1/contexts/{request_id}/move", json=body)
    return answer.status_code, answer.json()


async def finish(cluster: Gateways, asking: asyncio.Task[httpx.Response]) -> None:
    cluster.allow(10 * TOKENS)
    answer = await asyncio.wait_for(asking, 10)
    assert answer.json()["choices"][0]["text"] == words(TOKENS)


async def version(cluster: Gateways) -> int:
    view: ClusterView = await cluster.controller.watch(-1, 0.0)
    return view.version


async def test_a_drain_tells_its_deadline(cluster: Gateways) -> None:
    post = cluster.clients["g1"].post
    assert (await post("/admin/v1/replicas/d1/drain", json={"deadline_s": 30})).status_code == 202
    view = await cluster.controller.watch(-1, 0.0)
    (draining,) = [replica for replica in view.replicas if replica.state is ReplicaState.DRAINING]
    assert draining.leaves_at_s is not None and 29 < draining.leaves_at_s - view.now_s <= 30
    assert (await post("/admin/v1/replicas/d2/drain")).status_code == 202
    assert (await post("/admin/v1/replicas/d1/undrain")).status_code == 202
    left = {replica.replica_id: replica.leaves_at_s for replica in (await cluster.controller.watch(-1, 0.0)).replicas}
    assert left == {"d1": None, "d2": None}


@pytest.mark.parametrize("body", [{"deadline_s": -1}, {"deadline": 5}, {"deadline_s": "soon"}])
async def test_a_deadline_that_is_none_is_refused(cluster: Gateways, body: dict[str, Any]) -> None:
    answer = await cluster.clients["g1"].post("/admin/v1/replicas/d1/drain", json=body)
    assert answer.status_code in (400, 422) and "deadline" in answer.text


async def test_every_gateway_lists_the_contexts_of_all(cluster: Gateways) -> None:
    ones, twos = await ask(cluster, "g1", tokens=0), await ask(cluster, "g2", tokens=0)
    for here, there in (("g1", "g2"), ("g2", "g1")):
        await shown(cluster, here, gateway=there)
        listed = await contexts(cluster, here)
        assert [context["gateway"] for context in listed] == [here, there], "each context once, one's own first"
        assert listed[0] == {
            "gateway": here,
            "context": listed[0]["context"],
            "replica": listed[0]["replica"],
            "leg": 1,
            "prompt_tokens": 3,
            "output_tokens": 0,
        }
        assert listed[1].keys() == listed[0].keys()
    await finish(cluster, ones)
    await finish(cluster, twos)


@pytest.mark.parametrize("mode", ["kv", "replay"])
async def test_a_move_is_passed_on_to_the_gateway_that_owns_the_context(cluster: Gateways, mode: str) -> None:
    asking = await ask(cluster, "g1")
    context = await shown(cluster, "g2", gateway="g1")
    source = context["replica"]
    destination = "d2" if source == "d1" else "d1"
    before = await version(cluster)
    answer = await move(cluster, "g2", context["context"], destination=destination, mode=mode)
    assert answer == (202, {"context": context["context"], "move": "passed_on"})
    if mode == "kv":
        engine = cluster.engines[source]
        deadline_s = cluster.clock.now_s() + WAIT_S
        while not any(method == "hand_off" for method, _ in engine.calls) and cluster.clock.now_s() < deadline_s:
            await asyncio.sleep(0.01)
        engine.allow(1)
    assert (await shown(cluster, "g1", leg=2))["replica"] == destination
    assert await version(cluster) == before + 1
    await finish(cluster, asking)
    legs = [add.header.leg_id.rpartition("#")[2] for engine in cluster.engines.values() for add in engine.adds]
    assert sorted(legs) == ["1", "2"], "one wish is one move"
    (received,) = cluster.engines[destination].adds
    assert (received.kv is not None) == (mode == "kv")


async def test_ones_own_context_moves_directly(cluster: Gateways) -> None:
    asking = await ask(cluster, "g1")
    context = await shown(cluster, "g1")
    before = await version(cluster)
    answer = await move(cluster, "g1", context["context"])
    assert answer == (202, {"context": context["context"], "move": "at_next_token"})
    # A second wish while the first is under way is refused as before, and not passed on to oneself.
    await asyncio.sleep(1.2)  # by now the controller has heard of the context
    assert (await move(cluster, "g1", context["context"]))[0] == 404
    assert await version(cluster) == before
    await finish(cluster, asking)


async def test_a_context_that_nobody_has_is_not_found(cluster: Gateways) -> None:
    asking = await ask(cluster, "g1")
    await shown(cluster, "g2", gateway="g1")
    before = await version(cluster)
    status, body = await move(cluster, "g2", "nobody")
    assert status == 404 and "nobody" in body["error"]["message"]
    assert await version(cluster) == before
    await finish(cluster, asking)


async def test_without_the_token_there_is_no_answer(cluster: Gateways) -> None:
    for path in ("/admin/v1/contexts", "/admin/v1/status"):
        answer = await cluster.clients["g1"].get(path, headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401


async def test_wishes_that_lead_nowhere_are_refused(cluster: Gateways) -> None:
    asking = await ask(cluster, "g1")
    context = await shown(cluster, "g2", gateway="g1")
    name, source = context["context"], context["replica"]
    other = "d2" if source == "d1" else "d1"
    before = await version(cluster)
    for gateway_id in ("g1", "g2"):
        status, body = await move(cluster, gateway_id, name, destination="nobody")
        assert status == 404 and "no replica nobody" in body["error"]["message"]
        status, body = await move(cluster, gateway_id, name, destination=source)
        assert status == 409 and f"is on {source} already" in body["error"]["message"]
    assert await version(cluster) == before
    await cluster.controller.drain(other)
    for gateway_id in ("g1", "g2"):
        engines = cluster.pool(gateway_id).engines
        await until(lambda engines=engines: len(engines.candidates()) == 1)
        status, body = await move(cluster, gateway_id, name, destination=other)
        assert status == 409 and f"{other} takes no running contexts now" in body["error"]["message"]
        status, body = await move(cluster, gateway_id, name)
        assert status == 409 and f"no other replica than {source}" in body["error"]["message"]
    await finish(cluster, asking)
    legs = [add.header.leg_id for engine in cluster.engines.values() for add in engine.adds]
    assert len(legs) == 1, "it stayed where it was"
