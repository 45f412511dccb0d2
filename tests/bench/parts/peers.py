"""Other load generators: how each is installed, started on one load, and read. None of them is a part of Ferry."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from parts.children import end_group

INSTALL_WITHIN_S = 600.0
CHAT = "/v1/chat/completions"
MODEL = "truth"
PROMPT = "How long does this take?"
PROMPT_TOKENS = 8

# The metadata of a CPU build of vLLM has another name than its command asks for.
VLLM_BENCH = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


class NotHere(Exception):
    """A peer that cannot be had on this machine, and why."""


@dataclass(frozen=True)
class Job:
    """One load: a closed loop of `streams`, or an open one with Poisson arrivals of `rate_rps`.

    `takes_s`: with a client that loses no time, the last answer included. The peer is kept on `core`.
    """

    base_url: str
    requests: int
    tokens: int
    takes_s: float
    core: int
    tokenizer: Path
    folder: Path
    streams: int | None = None
    rate_rps: float | None = None

    @property
    def duration_s(self) -> int:
        """Of an open loop."""
        assert self.rate_rps is not None
        return round(self.requests / self.rate_rps)


@dataclass(frozen=True)
class Peer:
    """`command(python, job)` is run in the job's folder; `result` is what it leaves there."""

    name: str
    result: str
    command: Callable[[Path, Job], list[str]]
    package: str | None = None
    """Pinned; None where a module of this name in our own environment is all there is to it."""
    env: Mapping[str, str] = field(default_factory=dict)


def python_of(peer: Peer, python: str, folder: Path) -> Path:
    """The interpreter of the peer's own environment in `folder`, made with `python` where it is not there yet.

    Raises:
        NotHere: when it does not install.
    """
    if peer.package is None:
        if importlib.util.find_spec(peer.name) is None:
            raise NotHere("it is no part of this environment")
        return Path(sys.executable)
    home = folder / peer.package.replace("==", "-")
    done = home / "installed"
    if not done.exists():
        _run([python, "-m", "venv", "--clear", str(home)])
        _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", peer.package])
        done.touch()
    return home / "bin" / "python"


def _run(command: list[str]) -> None:
    with tempfile.TemporaryFile("w+") as said:  # a pipe would stay open as long as any grandchild
        try:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise NotHere(str(error)) from error
        try:
            code = process.wait(INSTALL_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise NotHere(f"it took longer than {INSTALL_WITHIN_S:.0f} s") from error
        finally:
            end_group(process)
        said.seek(0)
        if code:
            raise NotHere(_reason(said.read()) or f"exit code {code}")


def _reason(said: str) -> str:
    """Of pip's words, those that tell most: what it says last may be of a newer pip."""
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    last = (errors or said.strip().splitlines() or [""])[-1].removeprefix("ERROR: ")
    return f"{last} (--peer-python names another Python)" if "Requires-Python" in said else last


def _vllm(python: Path, job: Job) -> list[str]:
    load = ["--max-concurrency", str(job.streams)] if job.streams else ["--request-rate", str(job.rate_rps)]
    return [
        str(python), "-c", VLLM_BENCH, "--backend", "openai-chat", "--base-url", job.base_url, "--endpoint", CHAT,
        "--model", MODEL, "--tokenizer", str(job.tokenizer), "--dataset-name", "random",
        "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(job.tokens),
        "--num-prompts", str(job.requests), *load, "--save-result", "--result-dir", ".",
        "--result-filename", "vllm.json", "--disable-tqdm",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99",
    ]  # fmt: skip


def _aiperf(python: Path, job: Job) -> list[str]:
    prompts = job.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": PROMPT}) + "\n" for _ in range(job.requests)))
    load = (
        ["--concurrency", str(job.streams)]
        if job.streams
        else ["--request-rate", str(job.rate_rps), "--arrival-pattern", "poisson"]
    )
    return [
        str(python.parent / "aiperf"), "profile", "--model", MODEL, "--url", job.base_url, "--endpoint-type", "chat",
        "--streaming", *load, "--request-count", str(job.requests), "--input-file", prompts.name,
        "--custom-dataset-type", "single_turn", "--extra-inputs", f"max_tokens:{job.tokens}",
        "--tokenizer", str(job.tokenizer), "--output-artifact-dir", ".", "--ui", "none", "--no-server-metrics",
        "--no-gpu-telemetry", "--workers-max", "1",
    ]  # fmt: skip


def _guidellm(python: Path, job: Job) -> list[str]:
    prompts = job.folder / "prompts.jsonl"
    row = json.dumps({"prompt": PROMPT, "output_tokens_count": job.tokens})
    prompts.write_text(f"{row}\n" * job.requests)
    profile = f"kind=concurrent,streams={job.streams}" if job.streams else f"kind=poisson,rate={job.rate_rps}"
    backend = f"kind=openai_http,target={job.base_url},model={MODEL},request_format={CHAT}"
    return [
        str(python.parent / "guidellm"), "run", "--backend", backend, "--profile", profile,
        "--constraint", f"kind=max_requests,count={job.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={job.tokenizer}", "--data", f"kind=json_file,path={prompts.name}",
        "--output", "kind=json,path=guidellm.json", "--disable-console",
    ]  # fmt: skip


def _inference_perf(python: Path, job: Job) -> list[str]:
    """Its random prompts are refused for chat, so it measures text completions."""

    def fixed(tokens: int) -> dict[str, Any]:
        return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0, "total_count": job.requests}

    if job.streams:
        load = {"type": "concurrent", "stages": [{"num_requests": job.requests, "concurrency_level": job.streams}]}
    else:
        load = {"type": "poisson", "stages": [{"rate": job.rate_rps, "duration": job.duration_s}]}
    tree = {
        "api": {"type": "completion", "streaming": True},
        "data": {
            "type": "random",
            "input_distribution": fixed(PROMPT_TOKENS),
            "output_distribution": fixed(job.tokens),
        },
        "load": {**load, "num_workers": 1, "worker_max_concurrency": 10_000},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": job.base_url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(job.tokenizer)},
        "storage": {"local_storage": {"path": "."}},
        "report": {"request_lifecycle": {"summary": True, "per_stage": False, "per_request": False}},
    }
    (job.folder / "config-of-run.yaml").write_text(yaml.safe_dump(tree))
    return [str(python.parent / "inference-perf"), "-c", "config-of-run.yaml"]


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm", "vllm.json", _vllm, env=OFFLINE),
        # Offline, it takes no tokenizer in a folder.
        Peer("aiperf", "profile_export_aiperf.json", _aiperf, package="aiperf==0.13.0"),
        Peer(
            "guidellm",
            "guidellm.json",
            _guidellm,
            package="guidellm==0.8.1",
            # It would start ten workers, and it has one core.
            env={**OFFLINE, "GUIDELLM__MAX_WORKER_PROCESSES": "1"},
        ),
        Peer(
            "inference-perf",
            "summary_lifecycle_metrics.json",
            _inference_perf,
            package="inference-perf==0.7.0",
            env=OFFLINE,
        ),
    )
}


def environment(peer: Peer, job: Job) -> dict[str, str]:
    """What it leaves in its temporary files goes with the job's folder."""
    return {**os.environ, **peer.env, "TMPDIR": str(job.folder)}
