"""vLLM without Ferry: one `AsyncLLM` driven from its own event loop, no HTTP, no Ray, no KV connector."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import uvloop
from parts.children import BenchFailed, answer_all
from parts.streams import Run, Stream, closed_loop

from serving.engine import core
from serving.engine.core import CPU_ENGINE_ENV, ENGINE_ENV, ModelFiles
from serving.engine.plugin import SLEEPING_WAITS
from serving.settings import EngineSettings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True)
class DirectJob:
    """Prompts as text, at most `concurrency` at a time."""

    prompts: tuple[str, ...]
    concurrency: int
    output_tokens: int


def direct_main(conn: Connection, model: ModelFiles, settings: EngineSettings) -> None:
    """The process: DirectJob → Run."""
    # SLEEPING_WAITS is Ferry's change to vLLM: the other side of the comparison goes without.
    os.environ.update({**ENGINE_ENV, **CPU_ENGINE_ENV, **settings.env, SLEEPING_WAITS: "0"})
    uvloop.run(_serve(conn, model, settings))


async def _serve(conn: Connection, model: ModelFiles, settings: EngineSettings) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    args = dataclasses.replace(
        core.engine_args(model, settings, on_cpu=True), worker_extension_cls="", disable_log_stats=True
    )
    llm = AsyncLLM.from_engine_args(args)
    ids = itertools.count()

    async def run(job: DirectJob) -> Run:
        return await closed_loop(job.prompts, job.concurrency, lambda text: _stream(llm, f"r{next(ids)}", text, job))

    conn.send("ready")
    await answer_all(conn, run)
    llm.shutdown()


async def _stream(llm: AsyncLLM, request_id: str, text: str, job: DirectJob) -> Stream:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0, max_tokens=job.output_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    sent_s = time.perf_counter()
    events_s: list[float] = []
    prompt_tokens = output_tokens = 0
    async for output in llm.generate({"prompt": text}, params, request_id):
        events_s.append(time.perf_counter())
        prompt_tokens = len(output.prompt_token_ids or ())
        output_tokens += len(output.outputs[0].token_ids)
    if output_tokens != job.output_tokens:
        raise BenchFailed(f"vLLM itself gave {output_tokens} tokens of {job.output_tokens}")
    return Stream(sent_s, tuple(events_s), prompt_tokens, output_tokens)


__all__ = ["DirectJob", "direct_main"]
