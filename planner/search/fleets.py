"""Fleets: how many replicas of which designs carry the rate, what they cost, and which are worth a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import ceil

import numpy as np
import numpy.typing as npt

from planner.devices import Device
from planner.queueing.costs import Floats
from planner.search.designs import Designs
from planner.search.forms import Form, Forms

Index = npt.NDArray[np.intp]

# A rate that needs 2 replicas and a rounding error needs 2.
ROUNDING = 1e-9
# Prefill and decode designs that are combined, per storage format: the cheapest of each, by dollars and by GPUs.
PARTNERS = 4


@dataclass(frozen=True, eq=False)
class Pool:
    """`replicas` of a design; `replica_gpus` is below 1 for fractions of a device."""

    designs: Designs
    row: int
    device: Device
    form: Form
    replicas: int
    replica_rps: float
    replica_usd_per_hour: float
    replica_gpus: float

    @property
    def name(self) -> str:
        return f"{self.replicas} x {self.device.name} {self.form.name}"

    def times(self, replicas: int) -> Pool:
        return replace(self, replicas=replicas)


@dataclass(frozen=True)
class Fleet:
    """One mixed pool, or a prefill pool and a decode pool, big enough in closed form."""

    pools: tuple[Pool, ...]

    @property
    def usd_per_hour(self) -> float:
        return sum(pool.replicas * pool.replica_usd_per_hour for pool in self.pools)

    @property
    def gpus(self) -> int:
        return ceil(sum(pool.replicas * pool.replica_gpus for pool in self.pools) - ROUNDING)

    @property
    def rate_rps(self) -> float:
        """The highest rate that it carries."""
        return min(pool.replicas * pool.replica_rps for pool in self.pools)

    @property
    def disaggregated(self) -> bool:
        return len(self.pools) > 1

    @property
    def name(self) -> str:
        if len(self.pools) == 1:
            return f"{self.pools[0].name}, mixed"
        return f"prefill {self.pools[0].name} + decode {self.pools[1].name}"

    @property
    def family(self) -> tuple[str, bool]:
        """Fleets of one family err alike, so a simulation should see several families."""
        return self.pools[-1].device.name, self.disaggregated

    def rank(self) -> tuple[float, int, float, str]:
        """Cheapest first; of equally cheap ones, fewer GPUs, then more rate to spare."""
        return self.usd_per_hour, self.gpus, -self.rate_rps, self.name


@dataclass(frozen=True, kw_only=True)
class Market:
    """What one replica of each pair costs and takes."""

    forms: Forms
    usd_per_hour: Floats  # by pair
    gpus: Floats

    @classmethod
    def of(cls, forms: Forms, device_usd_per_hour: Sequence[float]) -> Market:
        """`device_usd_per_hour` is of one device, or fraction, by the order of `forms.devices`."""
        sizes = np.array([forms.forms[pair.form].layout.devices for pair in forms.pairs], float)
        prices = np.array([device_usd_per_hour[pair.device] for pair in forms.pairs])
        shares = np.array([1 / forms.devices[pair.device].per_device for pair in forms.pairs])
        return cls(forms=forms, usd_per_hour=sizes * prices, gpus=sizes * shares)

    def pool(self, designs: Designs, row: int, rate_rps: float) -> Pool:
        """As many replicas of a design as the rate takes."""
        pair = self.forms.pairs[int(designs.pair[row])]
        each = float(designs.rate_rps[row])
        return Pool(
            designs,
            int(row),
            self.forms.devices[pair.device],
            self.forms.forms[pair.form],
            max(1, ceil(rate_rps / each - ROUNDING)),
            each,
            float(self.usd_per_hour[designs.pair[row]]),
            float(self.gpus[designs.pair[row]]),
        )


def mixed_fleets(market: Market, designs: Designs, rate_rps: float) -> Iterator[Fleet]:
    """The best of each pair."""
    for row in designs.best_of_pairs():
        yield Fleet((market.pool(designs, row, rate_rps),))


def split_fleets(market: Market, prefill: Designs, decode: Designs, rate_rps: float) -> Iterator[Fleet]:
    """Prefill and decode pools whose KV is of one kind, on one device or on two of one maker.

    Their costs add up and neither depends on the other, so the best pair is made of the best of each.
    """
    sides = [[market.pool(designs, row, rate_rps) for row in designs.best_of_pairs()] for designs in (prefill, decode)]
    for first, second in _partners(sides[0], sides[1]):
        degrees = sorted((first.form.layout.tp, second.form.layout.tp))
        if degrees[1] % degrees[0] == 0:
            yield Fleet((first, second))


def _partners(prefill: list[Pool], decode: list[Pool]) -> Iterator[tuple[Pool, Pool]]:
    kinds = {_kind(pool) for pool in decode}
    devices = {pool.device.name for pool in decode}
    for kind in sorted(kinds):
        lists = [[pool for pool in pools if _kind(pool) == kind and _linked(pool)] for pools in (prefill, decode)]
        yield from _products(_few(lists[0]), _few(lists[1]))
        for name in sorted(devices):
            own = [[pool for pool in pools if pool.device.name == name] for pools in lists]
            yield from _products(_few(own[0])[:2], _few(own[1])[:2])


def _kind(pool: Pool) -> tuple[str, str, str]:
    """Caches of one kind can be handed over."""
    return pool.form.stored.name, pool.form.kv_dtype, pool.device.vendor


def _linked(pool: Pool) -> bool:
    """Fractions have no network of their own."""
    return pool.device.fraction_of is None


def _few(pools: Iterable[Pool]) -> list[Pool]:
    known = list(pools)
    by_usd = sorted(known, key=lambda pool: (pool.replicas * pool.replica_usd_per_hour, pool.name))
    by_gpus = sorted(known, key=lambda pool: (pool.replicas * pool.replica_gpus, pool.name))
    return list(dict.fromkeys(chain(by_usd[:PARTNERS], by_gpus[: PARTNERS // 2])))


def _products(first: list[Pool], second: list[Pool]) -> Iterator[tuple[Pool, Pool]]:
    return ((one, other) for one in first for other in second)


def shortlist(fleets: Sequence[Fleet], count: int) -> list[Fleet]:
    """The fleets to simulate: the cheapest, the smallest, and the best of the cheapest families. Cheapest first."""
    by_usd = sorted(fleets, key=Fleet.rank)
    by_gpus = sorted(fleets, key=lambda fleet: (fleet.gpus, *fleet.rank()))
    families: dict[tuple[str, bool], Fleet] = {}
    for fleet in by_usd:
        families.setdefault(fleet.family, fleet)
    wanted = chain(by_usd[: count // 2], by_gpus[: max(1, count // 4)], families.values(), by_usd)
    return sorted(islice(dict.fromkeys(wanted), count), key=Fleet.rank)
