"""How many spot and on-demand replicas hold a promise: availability, and the price of it.

A spot replica is up with probability A = MTBF / (MTBF + MTTR). Replicas of one zone come and go together, so the
number that is up in a zone is beta-binomial with that mean and a correlation; zones are independent. The mix is

    minimise  m x on-demand price + s x spot price   so that   P(m + up(s) >= need) >= 1 - epsilon

What happens between a notice and the replacement is in `planner.evacuation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Annotated

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from planner.documents import Document, nearest, validated
from planner.prices import Price
from planner.types import PlannerError

Floats = NDArray[np.float64]

# Cost is given with the range that holds nine days in ten.
LOW_QUANTILE, HIGH_QUANTILE = 0.05, 0.95

# Sums of probabilities come with rounding errors of this size; a plan must not hang on them.
ROUNDING = 1e-12


class Notice(Document):
    """How long before the end a provider says so. No provider guarantees it: `missed` is the share without notice."""

    lead_s: NonNegativeFloat
    missed: Annotated[float, Field(ge=0, le=1)]
    source: str = "stated by its file"


class SpotMarket(Document):
    """How spot instances of one kind come and go.

    `mtbf_h` is the mean time that an instance runs, `mttr_h` the mean time until it is replaced, both in hours;
    `zone_correlation` (0 to 1) says how much the instances of a zone share their fate; `lost_share` is the share of
    the running instances that one event takes, at its 90th percentile.
    """

    label: str = ""
    mtbf_h: PositiveFloat
    mttr_h: PositiveFloat
    zone_correlation: Annotated[float, Field(ge=0, lt=1)]
    lost_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    zones: PositiveInt = 1
    source: str = "stated by its file"

    @property
    def availability(self) -> float:
        """The share of time that an instance is up, 0 to 1."""
        return self.mtbf_h / (self.mtbf_h + self.mttr_h)

    def lost_at_once(self, running: int) -> int:
        """How many of `running` instances a bad event takes: at least one, at most all."""
        return min(running, max(1, ceil(self.lost_share * running - ROUNDING)))


class SpotMarkets(Document):
    """What is known of spot: notices by provider, and markets by name."""

    notices: Mapping[str, Notice]
    markets: Annotated[Mapping[str, SpotMarket], Field(min_length=1)]

    def notice(self, provider: str) -> Notice:
        """Raises PlannerError with the nearest names."""
        if provider not in self.notices:
            raise PlannerError("spot.yaml", "notices", provider, "no such provider", nearest(provider, self.notices))
        return self.notices[provider]

    def market(self, name: str) -> SpotMarket:
        """Raises PlannerError with the nearest names."""
        if name not in self.markets:
            raise PlannerError("spot.yaml", "markets", name, "no such market", nearest(name, self.markets))
        return self.markets[name]


@dataclass(frozen=True)
class SpotMix:
    """Replicas on demand and on spot, how surely they suffice, and what they cost in US dollars per hour.

    `usd_per_hour` pays for every replica; spot that is away costs nothing, so `expected` is less. The interval spans
    nine hours in ten of the number that is up, at the lowest and the highest price that was asked.
    """

    need: int
    on_demand: int
    spot: int
    probability: float
    usd_per_hour: float
    expected_usd_per_hour: float
    low_usd_per_hour: float
    high_usd_per_hour: float

    def line(self) -> str:
        """The mix in words, for a terminal."""
        return (
            f"{self.on_demand} on demand + {self.spot} spot hold {self.need} with probability {self.probability:.4f}: "
            f"{self.expected_usd_per_hour:.2f} USD/h expected "
            f"({self.low_usd_per_hour:.2f} to {self.high_usd_per_hour:.2f}), {self.usd_per_hour:.2f} while all run"
        )


def up_probabilities(spot: int, market: SpotMarket) -> Floats:
    """P(k of `spot` replicas are up) for k = 0 to `spot`, the replicas spread evenly over the zones."""
    share, more = divmod(spot, market.zones)
    up: Floats = np.ones(1)
    for zone in range(min(market.zones, spot)):
        in_zone = _beta_binomial(share + (zone < more), market.availability, market.zone_correlation)
        up = np.asarray(np.convolve(up, in_zone), dtype=np.float64)
    return up


def holds_probability(on_demand: int, spot: int, need: int, market: SpotMarket) -> float:
    """P(at least `need` replicas are up); on-demand ones always are."""
    missing = max(0, need - on_demand)
    return 0.0 if missing > spot else float(min(1.0, up_probabilities(spot, market)[missing:].sum()))


def spot_needed(need: int, on_demand: int, market: SpotMarket, *, epsilon: float, most: int) -> int | None:
    """The fewest spot replicas that hold `need` with probability 1 - `epsilon`; None if `most` do not."""
    low, high = max(0, need - on_demand), most
    if low > most or not _holds(on_demand, high, need, market, epsilon):
        return None
    while low < high:
        middle = (low + high) // 2
        if _holds(on_demand, middle, need, market, epsilon):
            high = middle
        else:
            low = middle + 1
    return low


def cheapest_mix(
    need: int,
    market: SpotMarket,
    *,
    on_demand: Price,
    spot: Price,
    epsilon: float = 0.001,
    most_spot: int | None = None,
    least_on_demand: int = 0,
) -> SpotMix:
    """The cheapest mix of replicas that holds `need`; prices are of one replica.

    Of equally cheap mixes, the one with the fewest spot replicas. `least_on_demand` is a floor that you insist on.
    Raises PlannerError for counts and probabilities that make no plan.
    """
    _check(need, epsilon, least_on_demand)
    most = 4 * need + 16 if most_spot is None else most_spot
    best = (need * on_demand.usd_per_hour, need, 0)
    for floor in range(need, min(least_on_demand, need) - 1, -1):
        if floor * on_demand.usd_per_hour >= best[0] and floor < need:
            continue
        count = spot_needed(need, floor, market, epsilon=epsilon, most=most)
        if count is None:
            break  # a lower floor needs still more spot
        cost = floor * on_demand.usd_per_hour + count * spot.usd_per_hour
        if cost < best[0] - ROUNDING:
            best = (cost, floor, count)
    _, floor, count = best
    return mix_of(need, floor, count, market, on_demand=on_demand, spot=spot)


def mix_of(
    need: int, on_demand_replicas: int, spot_replicas: int, market: SpotMarket, *, on_demand: Price, spot: Price
) -> SpotMix:
    """What a mix of your own choice costs, and how surely it holds `need`."""
    up = np.cumsum(up_probabilities(spot_replicas, market))
    few, many = (int(np.searchsorted(up, q - ROUNDING)) for q in (LOW_QUANTILE, HIGH_QUANTILE))
    floor_usd = on_demand_replicas * on_demand.usd_per_hour
    return SpotMix(
        need=need,
        on_demand=on_demand_replicas,
        spot=spot_replicas,
        probability=holds_probability(on_demand_replicas, spot_replicas, need, market),
        usd_per_hour=floor_usd + spot_replicas * spot.usd_per_hour,
        expected_usd_per_hour=floor_usd + spot_replicas * market.availability * spot.usd_per_hour,
        low_usd_per_hour=on_demand_replicas * on_demand.low_usd_per_hour + few * spot.low_usd_per_hour,
        high_usd_per_hour=on_demand_replicas * on_demand.high_usd_per_hour + many * spot.high_usd_per_hour,
    )


def spot_markets_from(data: object, *, file: str = "spot.yaml") -> SpotMarkets:
    """The notices and markets in parsed YAML. Raises PlannerError."""
    return validated(SpotMarkets, data, file=file)


def _holds(on_demand: int, spot: int, need: int, market: SpotMarket, epsilon: float) -> bool:
    return holds_probability(on_demand, spot, need, market) >= 1 - epsilon - ROUNDING


def _beta_binomial(n: int, mean: float, correlation: float) -> Floats:
    """P(k of n) where the chance itself is beta-distributed with `mean`; two members correlate by `correlation`."""
    k = np.arange(n + 1)
    ways = scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1)
    if correlation == 0:
        return np.asarray(np.exp(ways + scipy.special.xlogy(k, mean) + scipy.special.xlog1py(n - k, -mean)))
    weight = 1 / correlation - 1
    a, b = mean * weight, (1 - mean) * weight
    return np.asarray(np.exp(ways + scipy.special.betaln(k + a, n - k + b) - scipy.special.betaln(a, b)))


def _check(need: int, epsilon: float, least_on_demand: int) -> None:
    for key, value, odd, remedy in (
        ("need", need, need < 1, "ask for at least one replica"),
        ("epsilon", epsilon, not 0 < epsilon < 1, "give the accepted chance of too few replicas, such as 0.001"),
        ("least_on_demand", least_on_demand, least_on_demand < 0, "give 0 or more"),
    ):
        if odd:
            raise PlannerError("spot", key, value, "no plan can be made of it", remedy)
