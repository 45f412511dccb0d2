"""The part of the report that tells of the server, its moves and its price, as a person reads it."""

from __future__ import annotations

from rich.console import Console

from loadtest.cost import Cost
from loadtest.moves import MovesTotal
from loadtest.watch.summary import PoolTotal, ServerTotal


def show_moves(moves: MovesTotal | None, console: Console) -> None:
    if moves is not None:
        longest = f", longest gap {moves.gap_max_ms:.1f} ms" if moves.gap_max_ms is not None else ""
        _say(
            console,
            f"moves, as the answers tell: {moves.requests} requests moved, {moves.kv} times with KV and {moves.replay} "
            f"times by replay{longest}, {moves.recomputed_tokens} tokens computed again; {moves.handovers} hand-overs "
            f"after the prefill",
        )


def show_server(server: ServerTotal | None, console: Console) -> None:
    if server is None:
        return
    for pool, found in server.pools.items():
        _say(console, _pool_line(pool, found))
    if server.counted:
        counted = ", ".join(f"{name} {value:,.0f}" for name, value in server.counted.items() if value)
        moves = ", ".join(f"{name} {value:,.0f}" for name, value in server.moves.items())
        _say(console, f"server counted: {counted or 'nothing'}{f' (moves: {moves})' if moves else ''}")
    for index, gpu in server.gpus.items():
        figures = [
            f"{gpu.busy_mean_share:.0%} busy" if gpu.busy_mean_share is not None else "",
            f"{gpu.memory_max_bytes / 2**30:.1f} GiB" if gpu.memory_max_bytes is not None else "",
            f"{gpu.power_mean_w:.0f} W" if gpu.power_mean_w is not None else "",
        ]
        _say(console, f"GPU {index} here, {gpu.name}: {', '.join(figure for figure in figures if figure)}")
    for told, count in server.errors.items():
        _say(console, f"/metrics: {told} ({count} times)", style="yellow")


def show_cost(cost: Cost | None, console: Console) -> None:
    if cost is None:
        return
    good = "no SLO was given" if cost.good_tokens is None else "no token came within the SLO"
    if cost.usd_per_million_good_tokens is not None:
        good = f"${cost.usd_per_million_good_tokens:.3f} per million output tokens within the SLO"
    every = "" if cost.usd_per_million_tokens is None else f", ${cost.usd_per_million_tokens:.3f} per million of all"
    _say(console, f"price: {good}{every}, at ${cost.usd_per_hour:.2f}/h ({cost.source})")


def _pool_line(pool: str, found: PoolTotal) -> str:
    kv = (
        ""
        if found.kv_share_max is None
        else f", KV {found.kv_share_mean or 0:.0%} on average, {found.kv_share_max:.0%} at most"
    )
    return (
        f"server {pool or 'engines'}: at most {found.running_max:.0f} running and {found.waiting_max:.0f} waiting on "
        f"{found.engines_most} engines{kv}"
    )


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
