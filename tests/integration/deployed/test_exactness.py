"""Greedy output through prefill → decode equals a single plain vLLM engine, token for token."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys

import httpx
import pytest

from serving.model_store import resolve
from tests.integration.conftest import HOME, Deployment

pytestmark = [pytest.mark.slow, pytest.mark.real]

BLOCK = 128
LENGTHS = [5, 16, 63, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 400, 700]
OUTPUT_TOKENS = 16

# A plain engine, as vLLM's users make one: no Ferry, no KV connector, no prefix cache; one prompt at a time.
REFERENCE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model, prompts, count = sys.argv[1], json.load(sys.stdin), int(sys.argv[2])
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=4096, max_num_seqs=8,
              kv_cache_memory_bytes=1 << 29, enable_prefix_caching=False)
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    tokens = [llm.generate({"prompt_token_ids": p}, greedy, use_tqdm=False)[0].outputs[0].token_ids for p in prompts]
    open(sys.argv[3], "w").write(json.dumps([list(t) for t in tokens]))
"""


def prompt_of(length: int, seed: int) -> list[int]:
    """Token ids that share no prefix with any other prompt."""
    draw = random.Random(f"{length}/{seed}")
    return [draw.randrange(100, 40_000) for _ in range(length)]


ALONE = [prompt_of(length, seed=1) for length in LENGTHS]
TOGETHER = [prompt_of(length, seed=2) for length in LENGTHS[3:]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Tokens of the plain engine for ALONE and then TOGETHER."""
    folder = tmp_path_factory.mktemp("reference")
    script, result = folder / "reference.py", folder / "tokens.json"
    script.write_text(REFERENCE)
    model = resolve("smollm2-135m", HOME).path
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, str(script), str(model), str(OUTPUT_TOKENS), str(result)]
    run = subprocess.run(
        command,
        input=json.dumps(ALONE + TOGETHER),
        text=True,
        capture_output=True,
        timeout=240,
        env=os.environ | environ,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [list(tokens) for tokens in json.loads(result.read_text())]


async def complete(client: httpx.AsyncClient, deployment: Deployment, prompt: list[int]) -> list[int]:
    body = {
        "model": deployment.model,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = await client.post(f"{deployment.base_url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["usage"]["completion_tokens"] == OUTPUT_TOKENS
    assert found["usage"]["prompt_tokens"] == len(prompt)
    return list(found["choices"][0]["token_ids"])


async def test_alone(deployment: Deployment, reference: list[list[int]]) -> None:
    moves = deployment.metric("ferry:moves_total", reason="prefill_done", mode="kv")
    async with httpx.AsyncClient(timeout=120) as client:
        for prompt, expected in zip(ALONE, reference, strict=False):
            assert await complete(client, deployment, prompt) == expected, f"prompt of {len(prompt)} tokens"
    moved = deployment.metric("ferry:moves_total", reason="prefill_done", mode="kv") - moves
    assert moved == sum(len(prompt) >= 16 for prompt in ALONE), "long prompts moved, short ones ran whole"


async def test_eight_at_a_time(deployment: Deployment, reference: list[list[int]]) -> None:
    assert len(TOGETHER) == 8
    async with httpx.AsyncClient(timeout=120) as client:
        found = await asyncio.gather(*(complete(client, deployment, prompt) for prompt in TOGETHER))
    for prompt, tokens, expected in zip(TOGETHER, found, reference[len(ALONE) :], strict=True):
        assert tokens == expected, f"prompt of {len(prompt)} tokens"
