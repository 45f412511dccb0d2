"""`ferry load search` against servers that are queues, whose capacity is known in closed form.

    python tests/bench/load_search.py [--searches 5] [--precision 0.05]

Each search is the command itself, with a seed of its own, against a truth server in a process of its own. The aim is an
error of 5% at most, five times out of five, and an interval that holds the truth as often as it says. About two
minutes a search on an idle machine; run it on one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from loadtest.truth import Law, Queue, TruthConfig, TruthServer

AIM = 0.05
WANTED = 0.9
SEARCH_TIMEOUT_S = 900


@dataclass(frozen=True)
class Case:
    name: str
    config: TruthConfig
    limit_ms: float

    @property
    def known_rps(self) -> float:
        return Queue.of(self.config).capacity_rps(self.limit_ms / 1e3, WANTED)


CASES = (
    Case("M/D/16, 100 ms", TruthConfig(ttft_ms=100, ttft_law=Law.FIXED, slots=16, tokens=1), 150),
    Case("M/M/8, 20 ms", TruthConfig(ttft_ms=20, ttft_law=Law.EXPONENTIAL, slots=8, tokens=1), 60),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--searches", type=int, default=5, help="of each server")
    parser.add_argument("--servers", nargs="+", default=[case.name for case in CASES], help="of these names")
    parser.add_argument("--precision", type=float, default=0.05)
    arguments = parser.parse_args()
    all_near = True
    print("| server | known, rps | found, rps | error | interval 95% | holds it | runs | took, s |\n|---|" + "---|" * 7)
    for case in (case for case in CASES if case.name in arguments.servers):
        near = held = 0
        for seed in range(1, arguments.searches + 1):
            with TruthServer(case.config) as truth:
                tree = search(truth.base_url, case, seed, arguments.precision)
            error = tree["capacity_rps"] / case.known_rps - 1
            holds = tree["low_rps"] <= case.known_rps <= (tree["high_rps"] or float("inf"))
            near, held = near + (abs(error) <= AIM), held + holds
            interval = f"{tree['low_rps']:.1f} to {tree['high_rps'] or float('inf'):.1f}"
            print(
                f"| {case.name} | {case.known_rps:.1f} | {tree['capacity_rps']:.1f} | {error:+.1%} | {interval} "
                f"| {'yes' if holds else 'no'} | {len(tree['runs'])} | {tree['took_s']:.0f} |",
                flush=True,
            )
        print(
            f"{case.name}: {near} of {arguments.searches} within {AIM:.0%}; {held} intervals hold the truth", flush=True
        )
        all_near = all_near and near == arguments.searches
    return 0 if all_near else 1


def search(base_url: str, case: Case, seed: int, precision: float) -> dict[str, Any]:
    """The document that the command prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "serving", "load", "search", "--base-url", base_url, "--model", "truth"]
        command += ["--isl", "4", "--osl", "1", "--goodput", f"ttft:{case.limit_ms}", "--json"]
        command += ["--slo-attainment-fraction", str(WANTED), "--seed", str(seed), "--precision", str(precision)]
        command += ["--start-rate", f"{case.known_rps / 3:.3g}", "--save-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SEARCH_TIMEOUT_S, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the search failed with {done.returncode}: {done.stderr[-2000:]}")
    tree: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return tree


if __name__ == "__main__":
    raise SystemExit(main())
