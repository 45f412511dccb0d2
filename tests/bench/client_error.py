"""The load test's own error: what its client says against what a server with known latencies did.

    python tests/bench/client_error.py [--quick] [--truth ours|c] [--client-core N] [--truth-core N]
        [--streams N …] [--rates R …] [--peers all|vllm,aiperf,guidellm,inference-perf] [--peer-python PYTHON]

Closed loops whose streams stay in step, as a batching engine emits them, and open loops with Poisson arrivals; TTFT 200
ms, gap 50 ms, 64 tokens. Errors are client minus truth per request, from the instants at which bytes were handed to and
taken from the sockets on the same clock. One client process, kept on one core; the server has another, with real-time
priority where that is allowed. The machine must be idle: the wait for a core is printed with each line.

With `--peers` the same loads go through other load generators, on the same core. Each has an environment of its own,
made where it is not there yet (`vllm bench serve` is in ours); one that does not install is skipped with a message.
inference-perf needs a Python of 3.12 or newer. Their reports name no request, so their errors are the differences of
means and of P99s; what is asked of them is what they print by default about the time from sending. GuideLLM tells no
gaps between tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from parts.c_truth import CTruth, source
from parts.children import BenchFailed
from parts.ferry import HOME, local_settings
from parts.peer_runs import HEADING, line_of
from parts.peers import PEERS, NotHere, python_of
from parts.peers import Job as PeerJob

from loadtest.arrivals import Spread, constant_rate, due_times_s
from loadtest.calibrate import Point, Truth, answer_s, compare
from loadtest.jobs import body, closed_loop, open_loop
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthConfig, TruthServer
from loadtest.types import Job, Limits, Target
from serving.model_store import resolve

CHAT = "/v1/chat/completions"
STREAMS = (10, 100, 500, 1000)
RATES_RPS = (30.0, 150.0, 300.0)
SHORT_STREAMS, SHORT_REQUESTS = 64, 100_000

AIM_TTFT_MEAN_MS, AIM_TTFT_P99_MS, AIM_TTFT_P99_AT_1000_MS = 0.5, 2.0, 5.0
AIM_LAG_P99_MS, AIM_SHORT_RPS, AIM_BYTES, AIM_START_S = 1.0, 10_000.0, 150e6, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds for each load")
    parser.add_argument("--truth", choices=("ours", "c"), default="ours")
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--truth-core", type=int, default=0)
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS, help="closed loops")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES_RPS, help="open loops, in requests/s")
    parser.add_argument("--peers", type=_peers, default=(), help="none, all, or names with commas")
    parser.add_argument("--peer-python", default="python3", help="makes their environments")
    parser.add_argument("--peer-venvs", type=Path, default=Path(tempfile.gettempdir()) / "ferry-bench-peers")
    arguments = parser.parse_args()
    config = TruthConfig(core=arguments.truth_core, realtime=True)
    code = source()
    if arguments.truth == "c" and code is None:
        print("skipped: there is no truth_server.c beside FERRY_DATA, or no gcc")
        return 0
    with CTruth(code, config) if arguments.truth == "c" and code else TruthServer(config) as server:
        os.sched_setaffinity(0, {arguments.client_core})  # what is started from here on stays there
        loads = Loads(arguments.streams, arguments.rates, 4.0 if arguments.quick else 20.0)
        try:
            met = measure_all(server, config, loads)
            if arguments.peers:
                measure_peers(server, config, loads, arguments)
            return 0 if met else 1
        except BenchFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1


@dataclass(frozen=True)
class Loads:
    streams: Sequence[int]
    rates_rps: Sequence[float]
    duration_s: float

    def rounds(self, config: TruthConfig) -> int:
        """Answers of each stream of a closed loop."""
        return max(2, round(self.duration_s / answer_s(config)))


def _peers(names: str) -> tuple[str, ...]:
    chosen = tuple(PEERS) if names == "all" else tuple(filter(None, names.replace("none", "").split(",")))
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PEERS)}")
    return chosen


def measure_all(server: Truth, config: TruthConfig, loads: Loads) -> bool:
    """Print everything; True if every aim was met."""
    print(
        f"{'load':>16} {'TTFT error':>15} {'gap error':>15} {'E2E error':>15} {'lag p99':>8} {'gap p99':>8} "
        f"{'client':>7} {'waits':>6} {'MB':>5} {'server':>7} {'late p99':>8}  mean / p99 in ms"
    )
    met = []
    for streams in loads.streams:
        jobs = closed_loop([_body(config.tokens)] * (streams * loads.rounds(config)))
        point, _ = measure(server, f"{streams} streams", jobs, Limits(concurrency=streams))
        p99_ms = AIM_TTFT_P99_AT_1000_MS if streams >= 500 else AIM_TTFT_P99_MS
        met.append(_good(point, p99_ms) and point.peak_rss_bytes <= AIM_BYTES)
    for rate_rps in loads.rates_rps:
        rng = np.random.default_rng(1)
        due_s = due_times_s(constant_rate(rate_rps), Spread(), rng, duration_s=loads.duration_s)
        jobs = open_loop([_body(config.tokens)] * len(due_s), due_s.tolist())
        point, _ = measure(server, f"{rate_rps:g} requests/s", jobs, Limits())
        met.append(_good(point, AIM_TTFT_P99_MS) and point.lag_p99_ms <= AIM_LAG_P99_MS)
    if isinstance(server, TruthServer):
        server.change(replace(config, ttft_ms=0.0, gap_ms=0.0))
        met.append(measure_short(server, int(SHORT_REQUESTS * loads.duration_s / 20)))
        met.append(measure_start(server))
        server.change(config)
    print(f"aims: {sum(met)} of {len(met)} met")
    return all(met)


def measure(server: Truth, name: str, jobs: list[Job], limits: Limits) -> tuple[Point, RunResult]:
    """One load, and its line of the table."""
    server.take_log()
    result = run(RunSpec(Target(server.base_url, CHAT), jobs, limits))
    point = compare(name, result, server.take_log())
    if point.completed != point.requests:
        raise BenchFailed(f"{name}: only {point.completed} of {point.requests} answers came")
    errors = [f"{error.mean_ms:7.3f} /{error.p99_ms:6.2f}" for error in point.error.values()]
    gaps_ms = np.concatenate([record.gaps_ns for record in result.records]) / 1e6
    (worker,) = result.workers
    print(
        f"{name:>16} {' '.join(errors)} {point.lag_p99_ms:8.2f} {np.quantile(gaps_ms, 0.99):8.2f} "
        f"{point.client_cpu_share:7.0%} {worker.cpu_wait_share:6.1%} {point.peak_rss_bytes / 1e6:5.0f} "
        f"{point.server_cpu_share:7.0%} {point.server_late_p99_ms:8.2f}",
        flush=True,
    )
    return point, result


def measure_peers(server: Truth, config: TruthConfig, loads: Loads, asked: argparse.Namespace) -> None:
    """The same loads through other load generators. What fails at one is said, and the next goes on."""
    pythons = {}
    for name in asked.peers:
        try:
            pythons[name] = python_of(PEERS[name], asked.peer_python, asked.peer_venvs)
        except NotHere as error:
            print(f"{name}: skipped, it does not install here: {error}")
    tokenizer = resolve(local_settings()["model"], HOME).path
    plan = [(f"{streams} streams", streams * loads.rounds(config), streams, None) for streams in loads.streams]
    plan += [(f"{rate:g} requests/s", round(rate * loads.duration_s), None, rate) for rate in loads.rates_rps]
    print(f"\n{HEADING}")
    for title, requests, streams, rate_rps in plan:
        print(title)
        job = PeerJob(server.base_url, requests, config.tokens, tokenizer, asked.peer_venvs, streams, rate_rps)
        for name, python in pythons.items():
            try:
                print(line_of(PEERS[name], python, job, server, loads.duration_s + answer_s(config)), flush=True)
            except BenchFailed as error:
                print(f"{name:>16} failed: {error}", flush=True)


def measure_short(server: TruthServer, requests: int) -> bool:
    """Requests of two tokens as fast as they go."""
    jobs = closed_loop([_body(2)] * requests)
    _, result = measure(server, "short requests", jobs, Limits(concurrency=SHORT_STREAMS))
    wall_s = (max(record.end_ns for record in result.records) - result.start_ns) / 1e9
    print(f"{'':>16} {requests / wall_s:,.0f} requests/s on one core (aim: {AIM_SHORT_RPS:,.0f})")
    return requests / wall_s >= AIM_SHORT_RPS


def measure_start(server: TruthServer) -> bool:
    """From the shell to the end of one request that takes no time, all processes and the report included."""
    code = "from loadtest.cli import load_app; load_app()"
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["run", "--base-url", server.base_url, "--num-prompts", "1", "--save-dir", folder, "--json"]
        begun_s = time.perf_counter()
        told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        whole_s = time.perf_counter() - begun_s
    if told.returncode not in (0, 3) or json.loads(told.stdout)["total"]["outcomes"] != {"ok": 1}:
        raise BenchFailed(f"the one request failed: {told.stdout} {told.stderr}")
    print(f"{'':>16} start, one request and report: {whole_s:.2f} s (aim for the start: {AIM_START_S:g})")
    return whole_s <= AIM_START_S


def _good(point: Point, p99_ms: float) -> bool:
    ttft = point.error["ttft"]
    return abs(ttft.mean_ms) <= AIM_TTFT_MEAN_MS and ttft.p99_ms <= p99_ms


def _body(tokens: int) -> bytes:
    return body(CHAT, "truth", "How long does this take?", tokens, stream=True)


if __name__ == "__main__":
    sys.exit(main())
