"""The exactness matrix: a context that moves gives what it gives unmoved, in every field, at every kind of token.

Float32 engines, one context at a time, caches emptied before each run: a moved step has the same shapes as an unmoved
one, so KV moves must be equal to the bit. A replay computes the same positions in one prefill instead of one by one;
its logprobs are compared with a tolerance.

Each run is cut once at each of `POSITIONS`, and twice, in the middle too: away and back. Usage is what vLLM's front
end counts (the prompt, the tokens, those found cached) and what the gateway's metrics count. That a move took place
is part of what is compared: an answer that ends before its cut has none.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from tests.integration.engines import SMALL_BLOCKS, Hosts
from tests.integration.moving import DEPTHS, TOLERANCE, Depth, MovingClient, moving, runs

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

BLOCK = SMALL_BLOCKS.block_size or 0
TOKENS = 24
PROMPT_TOKENS = 4 * BLOCK - 8
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logprobs": 2},
    "seeded": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 11, "logprobs": 2},
    "penalties": {
        "temperature": 0,
        "presence_penalty": 1.2,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.15,
    },
    "logit bias": {"temperature": 0, "logit_bias": {260: 4.0, 28: -3.0}},
    "min tokens": {"temperature": 0, "min_tokens": TOKENS - 2, "logit_bias": {2: 8.0}, "ignore_eos": False},
    "stop string": {"temperature": 0, "stop": ["story of a"]},
    "stop token": {"temperature": 0, "stop_token_ids": [28]},
    "three of them": {"temperature": 0.9, "seed": 3, "n": 3},
    "json": {"temperature": 0, "structured_outputs": StructuredOutputsParams(json=PERSON)},
    "regex": {"temperature": 0, "structured_outputs": StructuredOutputsParams(regex=r"([a-z]{3}-){8}[a-z]{3}")},
    "grammar": {
        "temperature": 0,
        "structured_outputs": StructuredOutputsParams(grammar='root ::= ("tick " | "tock ")+ "end"'),
    },
    "multi-byte": {"temperature": 0, "structured_outputs": StructuredOutputsParams(regex="(é|漢|🙂){12}")},
}
# The first tokens, the block boundary (KV of 127 tokens moves at 8, four full blocks of 32 at 9) and the end.
POSITIONS = [1, 2, 8, 9, TOKENS - 1]
AWAY_AND_BACK = (3, 11)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(running: Hosts) -> AsyncIterator[tuple[MovingClient, AsyncLLM]]:
    async with moving(running) as opened:
        yield opened


def prompt(llm: AsyncLLM) -> dict[str, list[int]]:
    """A prompt of exactly PROMPT_TOKENS that the model goes on from sensibly."""
    tokenizer = llm.renderer.tokenizer
    text = "Once upon a time a ferry crossed the wide river every night, and people told its story. " * 12
    return {"prompt_token_ids": list(tokenizer.encode(text))[:PROMPT_TOKENS]}


async def run(llm: AsyncLLM, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """All that a client could see of one request."""
    whole = {"max_tokens": TOKENS, "ignore_eos": True, "output_kind": RequestOutputKind.FINAL_ONLY}
    sampling = SamplingParams(**whole | params)
    (final,) = [output async for output in llm.generate(prompt(llm), sampling, name)]
    outputs = sorted(final.outputs, key=lambda output: output.index)
    assert final.prompt_token_ids is not None
    return {
        "usage": (len(final.prompt_token_ids), sum(len(o.token_ids) for o in outputs), final.num_cached_tokens),
        "tokens": [list(output.token_ids) for output in outputs],
        "text": [output.text for output in outputs],
        "finish": [(output.finish_reason, output.stop_reason) for output in outputs],
        "logprobs": [
            (token, found.logprob)
            for output in outputs
            for position in output.logprobs or []
            for token, found in position.items()
        ],
    }


def differences(moved: dict[str, Any], unmoved: dict[str, Any], *, tolerance: float) -> list[str]:
    """What is not equal, for people. Logprobs are compared within `tolerance`, for the same alternatives."""
    found = [
        f"{field}: {moved[field]} against {unmoved[field]}"
        for field in ("usage", "tokens", "text", "finish")
        if moved[field] != unmoved[field]
    ]
    if [token for token, _ in moved["logprobs"]] != [token for token, _ in unmoved["logprobs"]]:
        return [*found, "logprobs of other tokens"]
    gaps = (abs(a - b) for (_, a), (_, b) in zip(moved["logprobs"], unmoved["logprobs"], strict=True))
    gap = max(gaps, default=0.0)
    return [*found, f"logprobs differ by up to {gap}"] if gap > tolerance else found


def reached(cuts: Sequence[int], unmoved: dict[str, Any]) -> Counter[int]:
    """How many contexts move at each cut: those whose answer goes on after it."""
    return Counter(cut for cut in cuts for tokens in unmoved["tokens"] if len(tokens) > cut)


async def counted(client: MovingClient, llm: AsyncLLM, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """`run`, and the gateway's count of the same tokens agrees."""
    names = ("ferry:prompt_tokens_total", "ferry:generation_tokens_total")
    before = [client.sample(name) for name in names]
    seen = await run(llm, name, params)
    prompts, generated = (client.sample(name) - was for name, was in zip(names, before, strict=True))
    assert prompts == seen["usage"][0] * params.get("n", 1)
    # A stop string ends a request in the front end, so the engine may be a token or two ahead.
    assert generated == seen["usage"][1] or ("stop" in params and generated > seen["usage"][1])
    return seen


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("case", CASES)
async def test_moved_equals_unmoved(opened: tuple[MovingClient, AsyncLLM], case: str, depth: Depth) -> None:
    client, llm = opened
    params = CASES[case]
    names = itertools.count()

    async def run_it() -> dict[str, Any]:
        return await counted(client, llm, f"{case}-{depth}-{next(names)}", params)

    unmoved = await client.run_cut(run_it)
    assert not client.moved
    length = max(map(len, unmoved["tokens"]))
    print(f"{case}: {length} tokens, {unmoved['finish']}")
    twice = AWAY_AND_BACK if length > max(AWAY_AND_BACK) else (1, length - 1)
    wrong = []
    for mode, cuts in runs([*((position,) for position in POSITIONS), twice], depth):
        moved = await client.run_cut(run_it, *cuts, mode=mode)
        wrong += [f"{mode}, cut at {cuts}: {found}" for found in differences(moved, unmoved, tolerance=TOLERANCE[mode])]
        # A context that stops at a string may be handed off before the front end has seen the string.
        moves = client.moved if "stop" not in params else Counter({c: n for c, n in client.moved.items() if c < length})
        if moves != reached(cuts, unmoved):
            wrong.append(f"{mode}, cut at {cuts}: moved at {moves}")
    print(*wrong, sep="\n")
    assert not wrong
    assert reached(twice, unmoved).keys() == set(twice), "it went away and came back"
    await asyncio.sleep(0.6)
    assert all(e.link.load.kv_usage == 0 for e in client.engines.all()), "no engine holds a block"
