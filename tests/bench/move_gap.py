"""The gap that a client sees when its stream moves, in decode steps and in milliseconds.

    python tests/bench/move_gap.py [--link loopback|throttled|all] [--quick] [--results FILE] [--plot FILE.svg]

Two engines with configs/local.yaml's settings and one `PoolClient`. Streams around 256, 1,024 and 4,000 tokens of
context move to and fro, one alone or eight at once, by KV with pre-copy, by KV in one go, and by replay. The normal
step beside each gap is of the same streams between their moves. The throttled link needs root: it joins the engines
by network namespaces. At the end of each cell every stream has all its tokens and no engine holds a block. All cells
take more than an hour; --link, --contexts, --streams and --modes choose among them, and --results collects.

Blocks are of 32 tokens: what the cut-over of a pre-copied move still carries is at most the block that is being
filled. GPUs have 16 by default; vLLM's attention on CPU takes multiples of 32, and 128 by default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

from parts import gap_plot
from parts.children import BenchFailed, Child
from parts.ferry import end_on_sigterm
from parts.move_fleet import LOOPBACK_LINK, Link, engine_settings, mover_on, throttled_link
from parts.moves import FIRST_TOKENS, LEGEND, MODES, STOP_AND_COPY, Cell, CellJob, Found, cell, heading, row
from parts.namespaces import NoNamespaces

CONTEXTS, STREAMS, MOVES = (256, 1_024, 4_000), (1, 8), 64
QUICK_CONTEXTS, QUICK_MOVES = (256, 1_024), 8
COSTLY_SHARE = 8
"""One replay for so many moves with KV."""
MBIT_PER_S = 200
CHECK_TOKENS, RATE_TOLERANCE = 4_000, 1.05
CELL_TIMEOUT_S = 3_600.0


def main() -> int:
    arguments = _arguments()
    end_on_sigterm()
    try:
        if not arguments.redraw:
            _measure(arguments)
    except BenchFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    if arguments.plot is not None:
        cells = _read(arguments.results)
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(gap_plot.svg(cells))
        print(f"plot: {arguments.plot}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--link", choices=("loopback", "throttled", "all"), default="all")
    parser.add_argument("--mbit", type=int, default=MBIT_PER_S, help="rate of the throttled link, in Mbit/s")
    parser.add_argument("--contexts", type=int, nargs="+", help=f"context tokens (default: {CONTEXTS})")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="moves at once")
    parser.add_argument("--modes", choices=[mode.name for mode in MODES], nargs="+", help="default: all")
    parser.add_argument("--moves", type=int, help=f"moves with KV per cell (default: {MOVES})")
    parser.add_argument("--tokens", type=int, default=FIRST_TOKENS, help="output of the first streams")
    parser.add_argument("--block-size", type=int, default=32, help="KV block size in tokens; multiples of 32")
    parser.add_argument("--quick", action="store_true", help="two contexts and few moves: shows that it works")
    parser.add_argument("--results", type=Path, help="append the cells to this file, one JSON object a line")
    parser.add_argument("--plot", type=Path, help="draw the cells of --results as an SVG")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: only --plot from --results")
    arguments = parser.parse_args()
    if arguments.results is None and (arguments.plot or arguments.redraw):
        parser.error("--plot draws what --results holds: name that file too")
    return arguments


def _measure(arguments: argparse.Namespace) -> None:
    links = {"loopback": LOOPBACK_LINK, "throttled": throttled_link(arguments.mbit)}
    for name, link in links.items():
        if arguments.link in (name, "all"):
            try:
                _measure_link(link, arguments)
            except NoNamespaces as error:
                print(f"{link.name}: skipped, no network namespaces: {error}", flush=True)


def _measure_link(link: Link, arguments: argparse.Namespace) -> None:
    with mover_on(link, engine_settings(arguments.block_size)) as (mover, replica):
        print(f"\n{link.name}: blocks of {replica.info.block_size_tokens} tokens, {link.env}")
        _warm(mover)
        _check_link(mover, link)
        print(f"{LEGEND}\n{heading()}", flush=True)
        for job in _jobs(link, arguments):
            measured = cell(link.name, job, mover.ask(job, CELL_TIMEOUT_S))
            print(row(measured), flush=True)
            if arguments.results is not None:
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                with arguments.results.open("a") as results:
                    results.write(json.dumps(asdict(measured)) + "\n")


def _jobs(link: Link, arguments: argparse.Namespace) -> list[CellJob]:
    contexts = arguments.contexts or (QUICK_CONTEXTS if arguments.quick else CONTEXTS)
    moves = arguments.moves or (QUICK_MOVES if arguments.quick else MOVES)
    modes = [mode for mode in MODES if arguments.modes is None or mode.name in arguments.modes]
    return [
        CellJob(
            mode=mode,
            context_tokens=context_tokens,
            streams=streams,
            moves=max(1, moves // COSTLY_SHARE) if mode.costly else moves,
            seed=f"{link.name}-{context_tokens}-{streams}",
            first_tokens=arguments.tokens,
        )
        for streams, context_tokens, mode in itertools.product(arguments.streams, contexts, modes)
    ]


def _warm(mover: Child) -> None:
    """One move each way and in each mode: first contacts and lazy imports take seconds."""
    for mode in MODES:
        mover.ask(CellJob(mode=mode, context_tokens=256, streams=1, moves=2, seed="warm"), CELL_TIMEOUT_S)


def _check_link(mover: Child, link: Link) -> None:
    """Print what the link carries, by moves in one go of a long context.

    Raises:
        BenchFailed: when it carries more than it may: KV goes another way.
    """
    job = CellJob(mode=STOP_AND_COPY, context_tokens=CHECK_TOKENS, streams=1, moves=2, seed="check")
    found: Found = mover.ask(job, CELL_TIMEOUT_S)
    mbit_per_s = 8e-6 * found.moved_bytes / sum(found.gap_s)
    print(
        f"{len(found.gap_s)} moves in one go at {CHECK_TOKENS:,} tokens carried {1e-6 * found.moved_bytes:.1f} MB "
        f"in gaps of {sum(found.gap_s):.2f} s: {mbit_per_s:,.0f} Mbit/s"
    )
    if link.mbit_per_s is not None and mbit_per_s > RATE_TOLERANCE * link.mbit_per_s:
        raise BenchFailed(f"the link may carry {link.mbit_per_s} Mbit/s: the throttle does not bite")


def _read(path: Path) -> list[Cell]:
    """The cells of a results file; of cells that were measured again, the last."""
    cells = (Cell(**json.loads(line)) for line in path.read_text().splitlines())
    return list({(c.link, c.mode, c.context_tokens, c.streams): c for c in cells}.values())


if __name__ == "__main__":
    sys.exit(main())
