"""The load test's own error: what its client says against what a server with known latencies did.

    python tests/bench/client_error.py [--quick] [--truth ours|c] [--client-core N] [--truth-core N]
        [--streams N …] [--rates R …]
        [--peers none|all|vllm,aiperf,guidellm,inference-perf] [--peer-python PYTHON] [--peer-venvs FOLDER]

Closed loops whose streams stay in step, as a batching engine emits them, and open loops with Poisson arrivals; TTFT 200
ms, gap 50 ms, 64 tokens. Errors are client minus truth per request, from the instants at which bytes were handed to and
taken from the sockets on the same clock. One client process, kept on one core; the server has another, with real-time
priority where that is allowed. The machine must be idle: the wait for a core is printed with each line.

With `--peers` the same loads go through other load generators, kept on the same core: `vllm bench serve`, aiperf,
GuideLLM and inference-perf. Each has an environment of its own in the folder `--peer-venvs`, of a pinned version, made
where it is not there yet (`vllm bench serve` is in ours); one that does not install is skipped with a message.
inference-perf needs a Python of 3.12 or newer: `--peer-python`. Their reports name no request, so their errors are the
differences of means and of P99s; a line of ours in the same terms stands above them. All count from the sending.
GuideLLM tells no gaps between tokens, so its TPOT is compared (`t`). inference-perf has random prompts for text
completions only, so it measures those. Answers a second are the server's count, beside what the load asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from parts.c_truth import CTruth, source
from parts.children import BenchFailed
from parts.ferry import HOME, local_settings
from parts.peer_errors import figures, served
from parts.peer_runs import HEADING, line, line_of
from parts.peers import PEERS, NotHere, python_of
from parts.peers import Job as PeerJob

from loadtest.arrivals import Spread, constant_rate, due_times_s
from loadtest.calibrate import Point, Truth, answer_s, compare
from loadtest.jobs import body, closed_loop, open_loop
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthConfig, TruthLog, TruthServer
from loadtest.types import Job, Limits, LoadTestError, Target
from serving.model_store import resolve

CHAT = "/v1/chat/completions"
STREAMS = (10, 100, 500, 1000)
RATES_RPS = (30.0, 150.0, 300.0)
SHORT_STREAMS, SHORT_REQUESTS = 64, 100_000
STARTS = 5

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
    parser.add_argument("--peer-python", default="python3", metavar="PYTHON", help="makes their environments")
    default = Path(tempfile.gettempdir()) / "ferry-bench-peers"
    parser.add_argument("--peer-venvs", type=Path, default=default, metavar="FOLDER", help=f"default: {default}")
    arguments = parser.parse_args()
    config = TruthConfig(core=arguments.truth_core, realtime=True)
    code = source()
    if arguments.truth == "c" and code is None:
        print("skipped: there is no truth_server.c beside FERRY_DATA, or no gcc")
        return 0
    with CTruth(code, config) if arguments.truth == "c" and code else TruthServer(config) as server:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {arguments.client_core})  # what is started from here on stays there
        loads = Loads(arguments.streams, arguments.rates, 4.0 if arguments.quick else 20.0)
        try:
            met, measured = measure_all(server, config, loads)
            if arguments.peers:
                # Each is put on the client's core, and watching it shall take nothing from that.
                os.sched_setaffinity(0, cores - {arguments.client_core} or cores)
                measure_peers(server, config, loads, arguments, measured)
            return 0 if met else 1
        except BenchFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1


@dataclass(frozen=True)
class Measured:
    """One load through our client."""

    point: Point
    result: RunResult
    log: TruthLog


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


def measure_all(server: Truth, config: TruthConfig, loads: Loads) -> tuple[bool, list[Measured]]:
    """Print everything. True if every aim was met; and closed and open loops, one after the other."""
    print(
        f"{'load':>16} {'TTFT error':>15} {'gap error':>15} {'E2E error':>15} {'lag p99':>8} {'gap p99':>8} "
        f"{'client':>7} {'waits':>6} {'MB':>5} {'server':>7} {'late p99':>8}  mean / p99 in ms"
    )
    met, measured = list[bool](), list[Measured]()
    for streams in loads.streams:
        jobs = closed_loop([_body(config.tokens)] * (streams * loads.rounds(config)))
        measured.append(measure(server, f"{streams} streams", jobs, Limits(concurrency=streams)))
        point = measured[-1].point
        p99_ms = AIM_TTFT_P99_AT_1000_MS if streams >= 500 else AIM_TTFT_P99_MS
        met.append(_good(point, p99_ms) and point.peak_rss_bytes <= AIM_BYTES)
    for rate_rps in loads.rates_rps:
        rng = np.random.default_rng(1)
        due_s = due_times_s(constant_rate(rate_rps), Spread(), rng, duration_s=loads.duration_s)
        jobs = open_loop([_body(config.tokens)] * len(due_s), due_s.tolist())
        measured.append(measure(server, f"{rate_rps:g} requests/s", jobs, Limits()))
        point = measured[-1].point
        met.append(_good(point, AIM_TTFT_P99_MS) and point.lag_p99_ms <= AIM_LAG_P99_MS)
    if isinstance(server, TruthServer):
        server.change(replace(config, ttft_ms=0.0, gap_ms=0.0))
        met.append(measure_short(server, int(SHORT_REQUESTS * loads.duration_s / 20)))
        met.append(measure_start(server))
        server.change(config)
    print(f"aims: {sum(met)} of {len(met)} met")
    return all(met), measured


def measure(server: Truth, name: str, jobs: list[Job], limits: Limits) -> Measured:
    """One load, and its line of the table."""
    server.take_log()
    result = run(RunSpec(Target(server.base_url, CHAT), jobs, limits))
    log = server.take_log()
    point = compare(name, result, log)
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
    return Measured(point, result, log)


def measure_peers(
    server: Truth, config: TruthConfig, loads: Loads, asked: argparse.Namespace, measured: Sequence[Measured]
) -> None:
    """The same loads through other load generators. What fails at one is said, and the next goes on."""
    pythons = {}
    for name in asked.peers:
        try:
            pythons[name] = python_of(PEERS[name], asked.peer_python, asked.peer_venvs)
        except NotHere as error:
            print(f"{name}: skipped, does not install here: {error}", flush=True)
    print(f"\n{HEADING}")
    for ours, job in zip(measured, peer_jobs(server, config, loads, asked), strict=True):
        print(ours.point.name)
        print(line_of_ours(ours, job), flush=True)
        for name, python in pythons.items():
            try:
                print(line_of(PEERS[name], python, job, server), flush=True)
            except (BenchFailed, LoadTestError) as error:
                print(f"{name:>16} failed: {error}", flush=True)


def peer_jobs(server: Truth, config: TruthConfig, loads: Loads, asked: argparse.Namespace) -> Iterator[PeerJob]:
    """Closed and open loops as measure_all runs them; the rates' number of requests is their mean."""
    common = {
        "base_url": server.base_url,
        "tokens": config.tokens,
        "core": asked.client_core,
        "tokenizer": resolve(local_settings()["model"], HOME).path,
        "folder": asked.peer_venvs,
    }
    for streams in loads.streams:
        rounds = loads.rounds(config)
        yield PeerJob(requests=streams * rounds, takes_s=rounds * answer_s(config), streams=streams, **common)
    for rate_rps in loads.rates_rps:
        requests, takes_s = round(rate_rps * loads.duration_s), loads.duration_s + answer_s(config)
        yield PeerJob(requests=requests, takes_s=takes_s, rate_rps=rate_rps, **common)


def line_of_ours(ours: Measured, job: PeerJob) -> str:
    point = ours.point
    job = replace(job, requests=point.requests)
    truth = served(ours.log.written, job.requests, job.tokens)
    told = figures([record for record in ours.result.records if record.ok])
    return line("ferry load run", told, truth, job, point.completed, point.client_cpu_share, point.peak_rss_bytes)


def measure_short(server: TruthServer, requests: int) -> bool:
    """Requests of two tokens as fast as they go."""
    jobs = closed_loop([_body(2)] * requests)
    result = measure(server, "short requests", jobs, Limits(concurrency=SHORT_STREAMS)).result
    wall_s = (max(record.end_ns for record in result.records) - result.start_ns) / 1e9
    print(f"{'':>16} {requests / wall_s:,.0f} requests/s on one core (aim: {AIM_SHORT_RPS:,.0f})")
    return requests / wall_s >= AIM_SHORT_RPS


def measure_start(server: TruthServer) -> bool:
    """From the shell to the end of one request that takes no time, all processes and the report included.

    With bytecode, as an installed package has it: the first of the runs writes it. The others' median counts.
    """
    took_s = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "serving", "load", "run", "--base-url", server.base_url]
        command += ["--num-prompts", "1", "--save-dir", folder, "--json"]
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(1 + STARTS):
            begun_s = time.perf_counter()
            told = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
            took_s.append(time.perf_counter() - begun_s)
    whole_s = statistics.median(took_s[1:])
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
