"""What the gateway costs: latency against vLLM itself (part A), CPU per streamed token (part B).

    python tests/bench/gateway_tax.py [--part a|b|all] [--profile] [--quick]

Part A. The same prompts go, in turns, through a running Ferry over HTTP and into one `AsyncLLM` of the same settings
driven in-process. While Ferry works, the other is frozen (SIGSTOP); while vLLM works, Ferry idles, and its idle CPU is
printed. With one mixed engine both sides have one engine with one OMP thread: the pure tax. With one prefill and one
decode engine Ferry has two engines, so two threads, against one: that ratio shows the whole system, not the tax.
Part B. The gateway alone, as Ray Serve's replica runs it (uvicorn, uvloop), in front of an engine that costs nothing.
Its CPU time is divided by the tokens that reached the client. Other figures beside it were measured elsewhere.
"""

from __future__ import annotations

import argparse
import sys

from parts import cpu_per_token, latency
from parts.children import BenchFailed
from parts.ferry import end_on_sigterm


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("a", "b", "all"), default="all")
    parser.add_argument("--profile", action="store_true", help="part B: py-spy on the gateway at 32 streams")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests")
    arguments = parser.parse_args()
    end_on_sigterm()
    try:
        if arguments.part in ("b", "all"):
            cpu_per_token.measure(quick=arguments.quick, profile=arguments.profile)
        if arguments.part in ("a", "all"):
            latency.measure(quick=arguments.quick)
    except BenchFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
