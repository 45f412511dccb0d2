"""A pull that brings other blocks than those that were lent: noticed, and computed anew before anything runs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from serving.contexts.engine_set import Engine
from serving.contexts.legs import Kv
from serving.contexts.running import Running
from serving.engine.checked_transfers import OFFER
from serving.router.policy import Route
from tests.integration.engines import Hosts
from tests.integration.moving import TOLERANCE, CuttingPlacer, MovingClient, moving

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(300)]

CUT = 70
PROMPT = [(7 * n) % 40_000 + 100 for n in range(150)]
"""With the tokens before the cut more than six blocks of 32."""


class Misdirection:
    """Has pulls bring a block of the source twice, instead of its neighbours, as a broken source or link would.

    Blocks in each other's place would not do: keys know their positions, and attention does not mind the order."""

    def __init__(self) -> None:
        self.active = False
        self.told = True
        self.pulls = 0

    def of(self, kv: Kv) -> Kv:
        if not self.active:
            return kv
        self.pulls += 1
        (blocks,) = kv["remote_block_ids"]
        wrong = kv | {"remote_block_ids": [[blocks[3]] * 3 + blocks[3:]]}
        return wrong if self.told else {key: value for key, value in wrong.items() if key != OFFER}


class Ends:
    def __init__(self, client: MovingClient, llm: AsyncLLM, misdirection: Misdirection):
        self.client, self.llm, self.misdirection = client, llm, misdirection

    async def answer(self) -> list[tuple[int, float]]:
        """Each token of the answer with its logprob; these tell what even a dull answer does not."""
        params = SamplingParams(
            temperature=0, max_tokens=120, ignore_eos=True, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        (final,) = [output async for output in self.llm.generate({"prompt_token_ids": PROMPT}, params, "checked")]
        (output,) = final.outputs
        assert output.logprobs is not None
        return [(token, at[token].logprob) for token, at in zip(output.token_ids, output.logprobs, strict=True)]

    async def failures(self) -> float:
        """Over both engines, since they started."""
        texts = [await engine.link.call("metrics") for engine in self.client.engines.all()]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("ferry:kv_checksum_failures")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "_created" not in line)


@pytest.fixture
async def ends(running: Hosts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    misdirection, begin_leg = Misdirection(), CuttingPlacer._begin_leg

    async def begin_misdirected(
        placer: CuttingPlacer, running: Running, engine: Engine, route: Route, kv: Kv | None
    ) -> None:
        await begin_leg(placer, running, engine, route, None if kv is None else misdirection.of(kv))

    monkeypatch.setattr(CuttingPlacer, "_begin_leg", begin_misdirected)
    async with moving(running) as (client, llm):
        yield Ends(client, llm, misdirection)


def equal(one: list[tuple[int, float]], other: list[tuple[int, float]], tolerance: float) -> bool:
    same_tokens = [token for token, _ in one] == [token for token, _ in other]
    return same_tokens and all(abs(a - b) <= tolerance for (_, a), (_, b) in zip(one, other, strict=True))


async def test_blocks_that_are_not_those_lent_are_computed_anew(ends: Ends) -> None:
    unmoved = await ends.client.run_cut(ends.answer)
    assert equal(await ends.client.run_cut(ends.answer, CUT), unmoved, TOLERANCE["kv"])
    before = await ends.failures()
    ends.misdirection.active = True
    assert equal(await ends.client.run_cut(ends.answer, CUT), unmoved, TOLERANCE["replay"])
    assert ends.misdirection.pulls >= 1
    assert await ends.failures() == before + ends.misdirection.pulls


async def test_unchecked_such_blocks_would_change_the_answer(ends: Ends) -> None:
    """What the test above relies on."""
    unmoved = await ends.client.run_cut(ends.answer)
    ends.misdirection.active, ends.misdirection.told = True, False
    assert not equal(await ends.client.run_cut(ends.answer, CUT), unmoved, TOLERANCE["replay"])
