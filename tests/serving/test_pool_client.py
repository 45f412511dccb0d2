"""The pool client: one stream per request, whatever engines its legs run on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from vllm.v1.engine import FinishReason

from tests.fakes import KV_BLOCK_BYTES, request, token_stream, until
from tests.serving.fleet import LONG, SHORT, Fleet


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    await fleet.start("p1", "d1")
    yield fleet
    await fleet.close()


async def test_a_long_prompt_moves_after_its_first_token(fleet: Fleet) -> None:
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=6)
    await fleet.expect_exact("r", 6)
    (prefill,), (decode,) = fleet["p1"].adds, fleet["d1"].adds
    assert (prefill.header.leg_id, decode.header.leg_id) == ("r#1", "r#2")
    assert prefill.leg == {"output_token_ids": [], "handoff_at_tokens": 1, "max_model_len": 4096}
    assert prefill.kv == {"do_remote_decode": True, "do_remote_prefill": False}
    assert fleet.held == set()


async def test_the_decode_leg_carries_the_log_and_the_kv(fleet: Fleet) -> None:
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=6, temperature=0.5, seed=3, stop_token_ids=[9])
    await fleet.expect_exact("r", 6)
    (decode,) = fleet["d1"].adds
    assert decode.leg == {"output_token_ids": token_stream([7], 1), "handoff_at_tokens": None, "max_model_len": 4096}
    assert decode.kv is not None
    assert (decode.kv["remote_engine_id"], decode.kv["remote_request_id"]) == ("kv-p1", "r#1")
    params = decode.request.sampling_params
    assert params is not None
    assert (params.max_tokens, params.temperature, params.seed, params.stop_token_ids) == (6, 0.5, 3, [9])
    assert decode.request.prompt_token_ids == [7] * LONG


async def test_a_prompt_under_the_threshold_runs_whole_where_it_decodes(fleet: Fleet) -> None:
    await fleet.ask("r", prompt_tokens=SHORT)
    await fleet.expect_exact("r", 6)
    assert fleet["p1"].adds == []
    assert [a.leg["handoff_at_tokens"] for a in fleet["d1"].adds] == [None]
    assert fleet["d1"].adds[0].kv is None


async def test_one_token_is_no_reason_to_move(fleet: Fleet) -> None:
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=1)
    await fleet.expect_exact("r", 1)
    assert [a.leg["handoff_at_tokens"] for a in fleet["p1"].adds] == [None]
    assert fleet["p1"].adds[0].kv is None
    assert fleet["d1"].adds == []
    assert fleet.metric("moves_total", reason="prefill_done", mode="kv") == 0


async def test_a_context_that_stops_at_its_first_token_does_not_move(fleet: Fleet) -> None:
    fleet["p1"].stop_after = 1
    await fleet.ask("r", prompt_tokens=LONG)
    assert await fleet.finished("r") is FinishReason.STOP
    assert fleet.tokens["r"] == token_stream([7], 1)
    assert fleet["d1"].adds == [] and fleet.held == set()
    assert fleet.metric("requests_total", outcome="stop") == 1


@pytest.mark.parametrize("prompt_tokens", [SHORT, LONG])
async def test_a_client_cannot_steer_engines(fleet: Fleet, prompt_tokens: int) -> None:
    kv = {"do_remote_prefill": True, "remote_engine_id": "evil", "remote_request_id": "x"}
    steering = {"kv_transfer_params": kv, "ec_transfer_params": kv, "ferry_leg": {"handoff_at_tokens": 3}}
    await fleet.ask("r", prompt_tokens=prompt_tokens, extra_args={**steering, "its_own": 1})
    await fleet.expect_exact("r", 6)
    for received in (*fleet["p1"].adds, *fleet["d1"].adds):
        params = received.request.sampling_params
        assert params is not None and params.extra_args is not None
        assert params.extra_args["its_own"] == 1
        assert "ec_transfer_params" not in params.extra_args
        assert received.leg["handoff_at_tokens"] in (None, 1)
        assert "evil" not in str(params.extra_args)


async def test_the_callers_request_is_left_as_it_was(fleet: Fleet) -> None:
    asked = request("r", prompt_tokens=LONG)
    await fleet.client.add_request_async(asked)
    await fleet.expect_exact("r", 6)
    assert asked.request_id == "r" and asked.sampling_params is not None
    assert asked.sampling_params.extra_args is None


@pytest.mark.parametrize("tokens_per_step", [1, 2, 100])
async def test_steps_of_any_size_make_the_same_stream(fleet: Fleet, tokens_per_step: int) -> None:
    fleet["p1"].tokens_per_step = fleet["d1"].tokens_per_step = tokens_per_step
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=7)
    await fleet.expect_exact("r", 7)


async def test_many_contexts_keep_their_own_streams(fleet: Fleet) -> None:
    await fleet.start("p2", "d2")
    sizes = {f"r{n}": (SHORT if n % 3 else LONG, 1 + n % 7) for n in range(30)}
    for n, (name, (prompt_tokens, max_tokens)) in enumerate(sizes.items()):
        await fleet.ask(name, prompt_tokens=prompt_tokens, max_tokens=max_tokens, first_token=n + 1)
    for n, (name, (_, max_tokens)) in enumerate(sizes.items()):
        await fleet.expect_exact(name, max_tokens, first_token=n + 1)
    moves = sum(prompt == LONG and count > 1 for prompt, count in sizes.values())
    assert fleet.held == set()
    assert fleet.metric("moves_total", reason="prefill_done", mode="kv") == moves
    assert fleet.metric("requests_total", outcome="length") == len(sizes)
    assert fleet.metric("requests_in_flight") == 0
    assert fleet.metric("prompt_tokens_total") == sum(prompt for prompt, _ in sizes.values())
    assert fleet.metric("generation_tokens_total") == sum(count for _, count in sizes.values())
    for name in ("p1", "p2", "d1", "d2"):
        assert (fleet.client.engines[name].legs, fleet.client.engines[name].unanswered) == (set(), {})


async def test_metrics_equal_the_ledger_of_one_moved_context(fleet: Fleet) -> None:
    fleet["d1"].pace()
    await fleet.ask("r", prompt_tokens=LONG, max_tokens=4)
    await until(lambda: fleet.tokens["r"])
    assert fleet.metric("requests_in_flight") == 1
    fleet["d1"].allow(3)
    await fleet.expect_exact("r", 4)
    assert fleet.metric("requests_in_flight") == 0
    assert fleet.metric("time_to_first_token_seconds_count") == 1
    assert fleet.metric("inter_token_latency_seconds_count") == 3
    assert fleet.metric("move_gap_seconds_count") == 1
    assert fleet.metric("e2e_request_latency_seconds_count") == 1
    assert fleet.metric("move_bytes_total") == LONG // 16 * KV_BLOCK_BYTES
    assert fleet.metric("fenced_tokens_total") == fleet.metric("recomputed_tokens_total") == 0


async def test_a_mixed_engine_serves_alone() -> None:
    fleet = Fleet()
    try:
        assert not await fleet.client.wait_until_servable(0.01)
        await fleet.start("m1")
        assert await fleet.client.wait_until_servable(0.01)
        await fleet.ask("r", prompt_tokens=LONG)
        await fleet.expect_exact("r", 6)
        assert fleet["m1"].adds[0].kv is None
    finally:
        await fleet.close()


async def test_what_asyncllm_asks_of_its_client(fleet: Fleet) -> None:
    client = fleet.client
    assert await client.get_supported_tasks_async() == ("generate",)
    assert not await client.is_sleeping_async()
    assert await client.reset_prefix_cache_async()
    assert fleet["p1"].calls == fleet["d1"].calls == [("reset_prefix_cache", [False, False])]
    assert not client.dp_engines_running()
