"""CPU of the gateway process per token that reached the client, and where it goes."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parts.bare_gateway import gateway_main
from parts.children import BenchFailed, Child, cpu_s
from parts.ferry import HOME, local_settings
from parts.instant_engine import engine_main
from parts.prompts import chat_body, messages
from parts.streams import HttpJob, Run, client_main

from serving.engine.channel import ChannelKeys
from serving.engine.core import ModelFiles
from serving.model_store import resolve
from serving.settings import Settings

STREAMS = (1, 8, 32, 128)
# µs per token at as many streams: throwaway prototype with real engines, and Dynamo 1.6 with its mock engine, both
# measured on another day on a machine like this one.
PROTOTYPE_US = {1: 838, 8: 202, 32: 113}
DYNAMO_US = {1: 283, 8: 67, 32: 41, 128: 37}
OUTPUT_TOKENS = 256
STEP_S = 0.02
PROMPT_WORDS = 160
PROFILE_STREAMS, PROFILE_S, PROFILE_HZ, PROFILE_TOP = 32, 10, 500, 25
OUTERMOST = 0.95  # frames that hold more than this of all samples only say how the process was started
WAITING = ("_worker (concurrent/futures", "Connection._recv (multiprocessing")  # idle threads that look busy
TEXT = (
    "The ferry crosses the river every hour, and in the winter it waits for the ice to break. People carry letters, "
    "bread and news; the captain knows each of them by name. When a storm comes, another boat takes the passengers. "
)


@dataclass(frozen=True, slots=True)
class Setup:
    gateway: Child
    client: Child
    model: str

    def run(self, streams: int, requests: int, seed: str) -> tuple[Run, float]:
        """A closed loop of chats, and the gateway's CPU time for it."""
        bodies = tuple(
            chat_body(self.model, messages(f"{seed}-{n}", PROMPT_WORDS), OUTPUT_TOKENS) for n in range(requests)
        )
        before_s = cpu_s(self.gateway.pid)
        run: Run = self.client.ask(HttpJob("127.0.0.1", self.gateway.said, bodies, streams, OUTPUT_TOKENS))
        return run, cpu_s(self.gateway.pid) - before_s


def measure(*, quick: bool, profile: bool) -> None:
    """Print the table of part B.

    Raises:
        BenchFailed: on any error or missing token.
    """
    rounds = 1 if quick else 3
    with _setup() as setup:
        print(f"gateway CPU per streamed token: chat, {OUTPUT_TOKENS} tokens, step {1e3 * STEP_S:.0f} ms, ", end="")
        print(f"median of {rounds} rounds (lowest to highest)")
        print(f"{'streams':>7} {'µs/token':>9} {'range':>13} {'events/token':>13} {'gateway':>8} {'client':>7}", end="")
        print(f" {'prototype':>15} {'Dynamo':>15}", flush=True)
        setup.run(8, 32, "warm-up")
        for streams in STREAMS:
            _row(setup, streams, rounds)
        if profile:
            _profile(setup)


def _row(setup: Setup, streams: int, rounds: int) -> None:
    requests = streams * 2 if streams > 1 else 4
    found = [setup.run(streams, requests, f"{streams}-{n}") for n in range(rounds)]
    us = sorted(1e6 * spent_s / run.output_tokens for run, spent_s in found)
    median = statistics.median(us)
    runs = [run for run, _ in found]
    wall_s = sum(run.wall_s for run in runs)
    events = sum(run.events for run in runs) / sum(run.output_tokens for run in runs)
    gateway, client = sum(spent_s for _, spent_s in found) / wall_s, sum(run.driver_cpu_s for run in runs) / wall_s
    beside = " ".join(f"{_against(median, table.get(streams)):>15}" for table in (PROTOTYPE_US, DYNAMO_US))
    span = f"{us[0]:.0f}-{us[-1]:.0f}"
    print(f"{streams:>7} {median:>9.0f} {span:>13} {events:>13.3f} {gateway:>8.0%} {client:>7.0%} {beside}", flush=True)


def _against(value: float, other: int | None) -> str:
    return "-" if other is None else f"{value / other:.2f} × {other} µs"


@contextlib.contextmanager
def _setup() -> Iterator[Setup]:
    settings = Settings.model_validate(local_settings())
    folder = resolve(settings.model, HOME)
    model, keys = ModelFiles(path=folder.path, served_name=folder.name), ChannelKeys.generate()
    with contextlib.ExitStack() as stack:

        def child(*args: object) -> Child:
            made = Child(*args)  # type: ignore[arg-type]
            stack.callback(made.stop)
            return made

        engine = child(engine_main, keys, _words(folder.path), STEP_S)
        gateway = child(gateway_main, settings, model, keys, (engine.said,))
        yield Setup(gateway, child(client_main), folder.name)


def _words(folder: Path) -> tuple[int, ...]:
    """Token ids of ordinary English."""
    from tokenizers import Tokenizer

    return tuple(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids)


def _profile(setup: Setup) -> None:
    """py-spy on the gateway for some seconds of the run."""
    requests = int(PROFILE_STREAMS * (PROFILE_S + 2) / (OUTPUT_TOKENS * STEP_S)) + PROFILE_STREAMS
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks"
        command = [str(Path(sys.executable).parent / "py-spy"), "record", "-p", str(setup.gateway.pid)]
        command += ["-d", str(PROFILE_S), "-r", str(PROFILE_HZ), "-f", "raw", "-o", str(stacks)]
        with (Path(folder) / "said").open("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as spy:
            setup.run(PROFILE_STREAMS, requests, "profile")
            if spy.wait(timeout=60) != 0:
                said.seek(0)
                raise BenchFailed(f"py-spy: {said.read()}")
        _show_profile(stacks.read_text().splitlines())


def _show_profile(lines: list[str]) -> None:
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        if frames[-1].startswith(WAITING):
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            inclusive[frame] += int(count)
    total = sum(own.values())
    inner = Counter({frame: count for frame, count in inclusive.items() if count < OUTERMOST * total})
    for name, counts in (("self", own), ("inclusive", inner)):
        print(f"\nprofile at {PROFILE_STREAMS} streams, {total} samples, by {name} time:")
        for frame, count in counts.most_common(PROFILE_TOP):
            print(f"  {count / total:6.1%}  {frame}")


def _short(frame: str) -> str:
    """`name (module.py)`: lines of one function count together."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rpartition(':')[0] or place.rstrip(')')})"
