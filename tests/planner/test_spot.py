"""Spot: probabilities by brute force, the laws of the cheapest mix, and the table against the traces it is from."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from planner import (
    PlannerError,
    Price,
    SpotMarket,
    SpotMix,
    cheapest_mix,
    holds_probability,
    mix_of,
    prices_from,
    read_spot_markets,
    spot_markets_from,
    spot_needed,
    up_probabilities,
)
from tests.research_data import data_file

OFFER = {"device": "d", "provider": "p", "on_demand_usd_per_hour": 1.0, "seen": date(2026, 11, 1)}
ANY_OFFER = prices_from({"offers": [OFFER]}).offers[0]


def price(usd: float, low: float | None = None, high: float | None = None) -> Price:
    return Price(usd, usd if low is None else low, usd if high is None else high, ANY_OFFER)


def market(availability: float, correlation: float = 0.0, zones: int = 1) -> SpotMarket:
    return SpotMarket(mtbf_h=availability, mttr_h=1 - availability, zone_correlation=correlation, zones=zones)


def mix(need: int, where: SpotMarket, od: float = 3.0, spot: float = 1.0, epsilon: float = 0.01) -> SpotMix:
    return cheapest_mix(need, where, on_demand=price(od), spot=price(spot), epsilon=epsilon)


def test_availability() -> None:
    assert SpotMarket(mtbf_h=9, mttr_h=1, zone_correlation=0).availability == 0.9


def test_without_correlation_it_is_binomial() -> None:
    assert up_probabilities(20, market(0.7)) == pytest.approx(stats.binom.pmf(range(21), 20, 0.7))


def test_one_zone_is_beta_binomial() -> None:
    rho = 0.2
    a, b = 0.7 * (1 / rho - 1), 0.3 * (1 / rho - 1)
    assert up_probabilities(20, market(0.7, rho)) == pytest.approx(stats.betabinom.pmf(range(21), 20, a, b))


def test_zones_are_independent() -> None:
    one = [stats.betabinom.pmf(range(n + 1), n, 0.7 * 4, 0.3 * 4) for n in (3, 2)]
    by_hand = np.zeros(6)
    for i, p in enumerate(one[0]):
        for j, q in enumerate(one[1]):
            by_hand[i + j] += p * q
    assert up_probabilities(5, market(0.7, 0.2, zones=2)) == pytest.approx(by_hand)


def test_more_zones_hold_better() -> None:
    chances = [holds_probability(0, 12, 8, market(0.9, 0.3, zones)) for zones in (1, 2, 4, 12)]
    assert chances == sorted(chances)
    assert chances[-1] == pytest.approx(holds_probability(0, 12, 8, market(0.9)))


def test_a_mix_by_hand() -> None:
    """Two needed, A = 0.9, no correlation: 3 spot are short with 0.028, 4 with 0.0037."""
    assert spot_needed(2, 0, market(0.9), epsilon=0.01, most=50) == 4
    chosen = mix(2, market(0.9), od=3.0, spot=1.0)
    assert (chosen.on_demand, chosen.spot, chosen.usd_per_hour) == (0, 4, 4.0)
    assert chosen.probability == pytest.approx(1 - 0.0037)
    assert chosen.expected_usd_per_hour == pytest.approx(3.6)
    # A dearer spot: 1 on demand + 2 spot (short with 0.01) for 3 + 2 x 1.2 beats 4 x 1.4 and 2 x 3.
    assert (mix(2, market(0.9), spot=1.4).on_demand, mix(2, market(0.9), spot=1.4).spot) == (0, 4)
    assert (mix(2, market(0.9), spot=1.45).on_demand, mix(2, market(0.9), spot=1.45).spot) == (0, 4)
    assert (mix(2, market(0.9), spot=1.5001).on_demand, mix(2, market(0.9), spot=1.5001).spot) == (2, 0)


def test_the_cheapest_by_brute_force() -> None:
    for where in (market(0.9, 0.1, 3), market(0.6), market(0.99, 0.5)):
        for spot_usd in (0.5, 1.0, 2.0, 2.9):
            costs = [
                m * 3.0 + s * spot_usd
                for m in range(7)
                for s in range(41)
                if holds_probability(m, s, 6, where) >= 0.99 - 1e-12
            ]
            assert mix(6, where, spot=spot_usd).usd_per_hour == pytest.approx(min(costs))


def test_the_interval_spans_prices_and_counts() -> None:
    chosen = mix_of(5, 2, 10, market(0.8), on_demand=price(3, 3, 6), spot=price(1, 0.5, 2))
    few, many = stats.binom.ppf([0.05, 0.95], 10, 0.8)
    assert chosen.low_usd_per_hour == pytest.approx(2 * 3 + few * 0.5)
    assert chosen.high_usd_per_hour == pytest.approx(2 * 6 + many * 2)
    assert "2 on demand + 10 spot" in chosen.line()


def test_a_floor_that_you_insist_on() -> None:
    free = cheapest_mix(4, market(0.9), on_demand=price(3), spot=price(1))
    held = cheapest_mix(4, market(0.9), on_demand=price(3), spot=price(1), least_on_demand=2)
    assert free.on_demand < 2 <= held.on_demand
    assert held.usd_per_hour >= free.usd_per_hour


@pytest.mark.parametrize(("need", "epsilon", "floor"), [(0, 0.1, 0), (-1, 0.1, 0), (3, 0, 0), (3, 1, 0), (3, 0.1, -1)])
def test_what_makes_no_plan_is_refused(need: int, epsilon: float, floor: int) -> None:
    with pytest.raises(PlannerError, match="no plan"):
        cheapest_mix(need, market(0.9), on_demand=price(3), spot=price(1), epsilon=epsilon, least_on_demand=floor)


needs = st.integers(1, 12)
chances = st.floats(0.05, 0.995)
correlations = st.just(0.0) | st.floats(0.01, 0.6)
zone_counts = st.integers(1, 4)
epsilons = st.floats(0.0005, 0.3)
usd = st.floats(0.05, 5)
markets = st.builds(market, chances, correlations, zone_counts)


@settings(deadline=None, max_examples=60)
@given(needs, markets, usd, usd, epsilons)
def test_cheaper_spot_never_raises_the_cost(need: int, where: SpotMarket, a: float, b: float, epsilon: float) -> None:
    low, high = sorted((a, b))
    cheap, dear = (mix(need, where, spot=spot, epsilon=epsilon).usd_per_hour for spot in (low, high))
    assert cheap <= dear + 1e-9


@settings(deadline=None, max_examples=60)
@given(needs, markets, usd, epsilons, epsilons)
def test_a_larger_epsilon_never_raises_the_cost(need: int, where: SpotMarket, spot: float, a: float, b: float) -> None:
    strict, lax = sorted((a, b))
    costs = [mix(need, where, spot=spot, epsilon=epsilon).usd_per_hour for epsilon in (strict, lax)]
    assert costs[1] <= costs[0] + 1e-9


@settings(deadline=None, max_examples=60)
@given(needs, correlations, zone_counts, chances, chances, epsilons, st.integers(0, 12))
def test_more_availability_never_raises_spot_or_cost(
    need: int, correlation: float, zones: int, a: float, b: float, epsilon: float, floor: int
) -> None:
    worse, better = (market(chance, correlation, zones) for chance in sorted((a, b)))
    counts = [spot_needed(need, floor, where, epsilon=epsilon, most=80) for where in (worse, better)]
    if counts[0] is not None:
        assert counts[1] is not None and counts[1] <= counts[0]
    assert mix(need, better, epsilon=epsilon).usd_per_hour <= mix(need, worse, epsilon=epsilon).usd_per_hour + 1e-9


@settings(deadline=None, max_examples=60)
@given(needs, markets, usd, epsilons)
def test_a_mix_holds_what_it_says(need: int, where: SpotMarket, spot: float, epsilon: float) -> None:
    chosen = mix(need, where, spot=spot, epsilon=epsilon)
    assert chosen.probability >= 1 - epsilon - 1e-9
    assert chosen.probability == holds_probability(chosen.on_demand, chosen.spot, need, where)
    assert chosen.usd_per_hour <= need * 3.0 + 1e-9
    assert chosen.low_usd_per_hour <= chosen.expected_usd_per_hour + spot
    assert chosen.expected_usd_per_hour <= chosen.usd_per_hour


@settings(deadline=None)
@given(st.integers(0, 60), markets)
def test_probabilities_are_a_distribution_with_the_declared_mean(count: int, where: SpotMarket) -> None:
    up = up_probabilities(count, where)
    assert up.shape == (count + 1,)
    assert up.sum() == pytest.approx(1)
    assert (up * np.arange(count + 1)).sum() == pytest.approx(count * where.availability)


def test_the_built_in_table() -> None:
    known = read_spot_markets()
    assert {name: known.notice(name).lead_s for name in ("aws", "gcp", "azure", "none")} == {
        "aws": 120,
        "gcp": 30,
        "azure": 30,
        "none": 0,
    }
    with pytest.raises(PlannerError) as error:
        known.notice("amazon")
    assert "aws" in error.value.remedy
    with pytest.raises(PlannerError):
        known.market("mars")


def test_odd_markets_are_refused() -> None:
    good = {"mtbf_h": 1.0, "mttr_h": 1.0, "zone_correlation": 0.1}
    for changes, key in (
        ({"mtbf_h": 0}, "mtbf_h"),
        ({"zone_correlation": 1}, "zone_correlation"),
        ({"mtbf": 1}, "mtbf"),
    ):
        with pytest.raises(PlannerError) as error:
            spot_markets_from({"notices": {}, "markets": {"m": {**good, **changes}}})
        assert error.value.key == f"markets.m.{key}"


def intra_class_correlation(counts: np.ndarray, hours: np.ndarray) -> tuple[float, float]:
    """Mean share of the greatest count, and the correlation that a beta-binomial of that size would have."""
    most = counts.max()
    share = np.average(counts / most, weights=hours)
    variance = np.average((counts / most - share) ** 2, weights=hours)
    return float(share), float((variance / (share * (1 - share)) - 1 / most) / (1 - 1 / most))


def test_the_table_is_what_the_aws_trace_says() -> None:
    told = read_spot_markets().market("aws_g4dn_2021")
    lines = data_file("spot/bamboo_g4dn-trace.csv").read_text("utf-8").split()
    events = [(int(at) / 3.6e6, verb, node) for at, verb, node in (line.split(",") for line in lines)]
    times, counts, lost_shares = [0.0], [0], []
    for at, together in groupby(events, key=lambda event: event[0]):
        verbs = [verb for _, verb, _ in together]
        if "remove" in verbs:
            lost_shares.append(verbs.count("remove") / counts[-1])
        times.append(at)
        counts.append(counts[-1] + verbs.count("add") - verbs.count("remove"))
    hours, held = np.diff(times), np.array(counts[:-1])
    assert (hours * held).sum() / sum(verb == "remove" for _, verb, _ in events) == pytest.approx(told.mtbf_h, rel=0.01)
    settled = np.array(times[:-1]) > 0.5  # the first half hour fills the fleet
    share, correlation = intra_class_correlation(held[settled], hours[settled])
    assert share == pytest.approx(told.availability, rel=0.01)
    assert correlation == pytest.approx(told.zone_correlation, abs=0.001)
    assert np.percentile(lost_shares, 90) == pytest.approx(told.lost_share, abs=0.005)


def test_the_table_is_what_the_gcp_trace_says() -> None:
    told = read_spot_markets().market("gcp_a100_2021")
    lines = data_file("spot/bamboo_gcloud_a100x1_east1b.txt").read_text("utf-8").splitlines()
    rows = [line.split(", ") for line in lines if line.strip()]
    times = [datetime.fromisoformat(f"{day} {clock}") for day, clock, _ in rows]
    counts = np.array([int(count) for *_, count in rows])
    hours = np.array([(b - a) / timedelta(hours=1) for a, b in pairwise(times)])
    drops = counts[:-1] - counts[1:]
    assert (hours * counts[:-1]).sum() / drops[drops > 0].sum() == pytest.approx(told.mtbf_h, rel=0.01)
    share, correlation = intra_class_correlation(counts[:-1], hours)
    assert share == pytest.approx(told.availability, rel=0.01)
    assert correlation == pytest.approx(told.zone_correlation, abs=0.001)
    assert np.percentile((drops / counts[:-1])[drops > 0], 90) == pytest.approx(told.lost_share, abs=0.005)
