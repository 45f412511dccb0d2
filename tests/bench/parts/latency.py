"""Latency through Ferry against the same vLLM in-process, in turns on the same prompts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parts.children import BenchFailed, Child, busy_share, cpu_s
from parts.direct import DirectJob, direct_main
from parts.ferry import HOME, Deployment, deployed, local_settings
from parts.prompts import chat_body, messages
from parts.streams import HttpJob, Run, client_main, itl_ms, ttft_ms

from serving.engine.core import ModelFiles
from serving.model_store import resolve
from serving.settings import Settings

ITL_AIM, TTFT_AIM = 1.10, 1.15
OUTPUT_TOKENS = 64
PROMPT_WORDS = 160
REQUESTS = {1: 6, 8: 24, 32: 64}
QUICK_REQUESTS = {1: 3, 8: 16, 32: 32}
IDLE_SAMPLE_S = 3.0
WARM_STREAMS = 8

FLEETS: dict[str, dict[str, Any]] = {
    "1 mixed engine: the pure tax, one engine on each side": {"mixed": {"role": "mixed", "replicas": 1}},
    "1 prefill + 1 decode: two engine threads here, one there": {
        "prefill": {"role": "prefill", "replicas": 1},
        "decode": {"role": "decode", "replicas": 1},
    },
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The same requests through both arms, one after the other."""

    ferry: Run
    direct: Run
    gateway_cpu_s: float


class Arms:
    """A running Ferry and its client, and vLLM itself: never both at work."""

    def __init__(self, deployment: Deployment, client: Child, direct: Child, render: Callable[[Any], str]):
        self._state, self._client, self._direct, self._render = deployment.state, client, direct, render
        self._gateway_pid = deployment.gateway_pid()

    def pair(self, streams: int, requests: int, seed: str, *, ferry_first: bool) -> Pair:
        """One round. Who goes first changes, so that slow drift of the machine hits both."""
        chats = [messages(f"{seed}-{streams}-{n}", PROMPT_WORDS) for n in range(requests)]
        if ferry_first:
            ferry, cpu_seconds = self._ferry(chats, streams)
            direct = self._vllm(chats, streams)
        else:
            direct = self._vllm(chats, streams)
            ferry, cpu_seconds = self._ferry(chats, streams)
        prompts = [sorted(stream.prompt_tokens for stream in run.streams) for run in (ferry, direct)]
        if prompts[0] != prompts[1]:
            raise BenchFailed(f"the arms saw different prompts: {prompts[0][:4]}… and {prompts[1][:4]}… tokens")
        return Pair(ferry, direct, cpu_seconds)

    def _ferry(self, chats: Sequence[Any], streams: int) -> tuple[Run, float]:
        bodies = tuple(chat_body(self._state.model, chat, OUTPUT_TOKENS) for chat in chats)
        before_s = cpu_s(self._gateway_pid)
        run: Run = self._client.ask(HttpJob("127.0.0.1", self._state.port, bodies, streams, OUTPUT_TOKENS))
        return run, cpu_s(self._gateway_pid) - before_s

    def _vllm(self, chats: Sequence[Any], streams: int) -> Run:
        prompts = tuple(self._render(chat) for chat in chats)
        self._direct.thaw()
        run: Run = self._direct.ask(DirectJob(prompts, streams, OUTPUT_TOKENS))
        self._direct.freeze()
        return run


def measure(*, quick: bool) -> None:
    """Print the tables of part A.

    Raises:
        BenchFailed: on any error or missing token.
    """
    tree = local_settings()
    folder = resolve(tree["model"], HOME)
    model = ModelFiles(path=folder.path, served_name=folder.name)
    with _child(client_main) as client, _child(direct_main, model, Settings.model_validate(tree).engine) as direct:
        direct.freeze()
        render = _renderer(model)
        for name, pools in FLEETS.items():
            with deployed({**tree, "pools": pools}) as deployment:
                print(f"\nFerry with {name}")
                time.sleep(IDLE_SAMPLE_S)
                idle = busy_share(deployment.processes(), IDLE_SAMPLE_S, time.sleep)
                print(
                    f"idle, it takes {100 * idle:.0f} % of a core; ready after {deployment.start_s:.0f} s", flush=True
                )
                _compare(Arms(deployment, client, direct, render), name, quick=quick)


def _compare(arms: Arms, seed: str, *, quick: bool) -> None:
    rounds, requests = (2, QUICK_REQUESTS) if quick else (4, REQUESTS)
    arms.pair(WARM_STREAMS, 2 * WARM_STREAMS, f"{seed}-warm", ferry_first=True)
    print(f"{'streams':>7} {'arm':<6} {'TTFT p50':>9} {'p90':>7} {'ITL p50':>8} {'p90':>7} {'tokens/s':>8}  ", end="")
    print(f"ms; {OUTPUT_TOKENS} tokens each, {rounds} rounds of {requests} requests", flush=True)
    for streams, count in requests.items():
        pairs = [arms.pair(streams, count, f"{seed}-{n}", ferry_first=n % 2 == 0) for n in range(rounds)]
        _show(streams, pairs)


def _show(streams: int, pairs: list[Pair]) -> None:
    arms = {"ferry": [pair.ferry for pair in pairs], "vLLM": [pair.direct for pair in pairs]}
    for name, runs in arms.items():
        rate = sum(run.output_tokens for run in runs) / sum(run.wall_s for run in runs)
        figures = f"{ttft_ms(runs, 0.5):>9.1f} {ttft_ms(runs, 0.9):>7.1f} {itl_ms(runs, 0.5):>8.2f}"
        print(f"{streams:>7} {name:<6} {figures} {itl_ms(runs, 0.9):>7.2f} {rate:>8.0f}")
    tokens = sum(run.output_tokens for run in arms["ferry"])
    wall_s = sum(run.wall_s for run in arms["ferry"])
    print(
        f"{'':>7} ratio  TTFT p50 {_ratio(pairs, ttft_ms, TTFT_AIM)}; ITL p50 {_ratio(pairs, itl_ms, ITL_AIM)}\n"
        f"{'':>7}        gateway {1e6 * sum(pair.gateway_cpu_s for pair in pairs) / tokens:.0f} µs CPU/token; "
        f"client {sum(run.driver_cpu_s for run in arms['ferry']) / wall_s:.1%} of a core; "
        f"{sum(run.events for run in arms['ferry']) / tokens:.3f} events/token",
        flush=True,
    )


def _ratio(pairs: list[Pair], of: Callable[[Sequence[Run], float], float], aim: float) -> str:
    """The ratio over all rounds, the range of the rounds' own ratios as a measure of noise, and the aim."""
    ratio = of([pair.ferry for pair in pairs], 0.5) / of([pair.direct for pair in pairs], 0.5)
    own = sorted(of([pair.ferry], 0.5) / of([pair.direct], 0.5) for pair in pairs)
    verdict = "met" if ratio <= aim else "MISSED"
    middle = statistics.median(own)
    return f"{ratio:.2f} (rounds {own[0]:.2f}-{own[-1]:.2f}, median {middle:.2f}; aim ≤ {aim:.2f}: {verdict})"


@contextlib.contextmanager
def _child(*args: Any) -> Iterator[Child]:
    child = Child(*args)
    try:
        yield child
    finally:
        child.stop()


def _renderer(model: ModelFiles) -> Callable[[Any], str]:
    """The model's own chat template, as the gateway applies it, outside the measured time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)

    def render(chat: Any) -> str:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return text

    return render
