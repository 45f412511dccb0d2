"""What the samples of a run come to. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.watch.types import EngineSample, GpuSample, ServerSample, Watched


@dataclass(frozen=True, slots=True)
class PoolTotal:
    """One pool over the run; "" is a server without pools. `kv_share` of its engines' mean; None where not told."""

    engines_most: int
    running_max: float
    waiting_max: float
    kv_share_mean: float | None
    kv_share_max: float | None
    """Of the fullest engine at the fullest instant."""


@dataclass(frozen=True, slots=True)
class GpuTotal:
    """One GPU of the client's machine; None where the driver does not tell."""

    name: str
    busy_mean_share: float | None
    memory_max_bytes: int | None
    power_mean_w: float | None
    energy_j: float | None


@dataclass(frozen=True, slots=True)
class ServerTotal:
    """The run as the server's own metrics tell it."""

    scrapes: int
    errors: Mapping[str, int]
    scrape_max_ms: float
    pools: Mapping[str, PoolTotal]
    counted: Mapping[str, float]
    """What its counters rose by from the first to the last scrape."""
    moves: Mapping[str, float]
    """The same for moves, by reason and mode."""
    gpus: Mapping[int, GpuTotal]


def server_total(watched: Watched) -> ServerTotal:
    samples = watched.server
    rises = {name: rise(samples, name) for name in _counter_names(samples)}
    return ServerTotal(
        scrapes=len(samples),
        errors=dict(watched.errors or {}),
        scrape_max_ms=max((sample.took_ns for sample in samples), default=0) / 1e6,
        pools=_pools(samples),
        counted={name: sum(found.values()) for name, found in rises.items()},
        moves=_moves(rises.get("moves", {})),
        gpus=_gpus(watched.gpus),
    )


def rise(samples: Sequence[ServerSample], name: str) -> dict[str, float]:
    """How much each series of this counter rose. One that falls was started anew: it counts from 0 again.

    A series that first comes up after the first sample is that of a new process, so all of it counts.
    """
    rises: dict[str, float] = {}
    last: dict[str, float] = {}
    for number, sample in enumerate(samples):
        for who, value in sample.counters.get(name, {}).items():
            before = last.get(who, value if number == 0 else 0.0)
            rises[who] = rises.get(who, 0.0) + (value - before if value >= before else value)
            last[who] = value
    return rises


def pools_of(samples: Sequence[ServerSample]) -> tuple[str, ...]:
    return tuple(sorted({engine.pool for sample in samples for engine in sample.engines}))


def kv_share(engines: Sequence[EngineSample]) -> float | None:
    """The mean over engines that tell; None if none does."""
    told = [engine.kv_share for engine in engines if engine.kv_share is not None]
    return sum(told) / len(told) if told else None


def _counter_names(samples: Sequence[ServerSample]) -> tuple[str, ...]:
    return tuple(sorted({name for sample in samples for name in sample.counters}))


def _moves(rises: Mapping[str, float]) -> dict[str, float]:
    """From series of several gateways, such as `gateway=a,mode=kv,reason=drain`."""
    by: dict[str, float] = {}
    for who, count in rises.items():
        labels = dict(part.split("=", 1) for part in who.split(",") if "=" in part)
        name = f"{labels.get('reason', '?')} {labels.get('mode', '?')}"
        by[name] = by.get(name, 0.0) + count
    return {name: count for name, count in sorted(by.items()) if count}


def _pools(samples: Sequence[ServerSample]) -> dict[str, PoolTotal]:
    totals = {}
    for pool in pools_of(samples):
        each = [[engine for engine in sample.engines if engine.pool == pool] for sample in samples]
        shares = [share for engines in each if (share := kv_share(engines)) is not None]
        single = [engine.kv_share for engines in each for engine in engines if engine.kv_share is not None]
        totals[pool] = PoolTotal(
            engines_most=max(len(engines) for engines in each),
            running_max=max(sum(engine.running for engine in engines) for engines in each),
            waiting_max=max(sum(engine.waiting for engine in engines) for engines in each),
            kv_share_mean=sum(shares) / len(shares) if shares else None,
            kv_share_max=max(single, default=None),
        )
    return totals


def _gpus(samples: Sequence[GpuSample]) -> dict[int, GpuTotal]:
    totals = {}
    for index in sorted({sample.index for sample in samples}):
        own = [sample for sample in samples if sample.index == index]
        busy = [sample.busy_share for sample in own if sample.busy_share is not None]
        powers = [(sample.at_ns, sample.power_w) for sample in own if sample.power_w is not None]
        totals[index] = GpuTotal(
            name=own[0].name,
            busy_mean_share=sum(busy) / len(busy) if busy else None,
            memory_max_bytes=max(
                (sample.memory_bytes for sample in own if sample.memory_bytes is not None), default=None
            ),
            power_mean_w=sum(power for _, power in powers) / len(powers) if powers else None,
            energy_j=_energy_j(powers) if len(powers) > 1 else None,
        )
    return totals


def _energy_j(powers: Sequence[tuple[int, float]]) -> float:
    """The area under the samples, joined by straight lines."""
    return sum(
        (at - before) / 1e9 * (power + power_before) / 2 for (before, power_before), (at, power) in pairwise(powers)
    )
