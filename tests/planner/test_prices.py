"""Prices: cheapest offer and range, fractions, own files, warnings; nothing without a price is free."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from planner import PlannerError, device, prices_from, read_devices, read_prices

PRICES = read_prices()
H100 = device("h100_sxm")
OFFER = {"device": "h100_sxm", "provider": "ours", "on_demand_usd_per_hour": 2.0, "seen": date(2026, 11, 20)}


def test_every_offer_is_for_a_device_of_the_catalogue() -> None:
    devices = read_devices()
    assert len(PRICES.offers) > 20
    for offer in PRICES.offers:
        assert devices.device(offer.device).name == offer.device
        assert len(offer.source) > 10


def test_spot_is_cheaper_than_on_demand_everywhere() -> None:
    for offer in PRICES.offers:
        if offer.on_demand_usd_per_hour and offer.spot_usd_per_hour:
            assert offer.spot_usd_per_hour < offer.on_demand_usd_per_hour


def test_the_cheapest_offer_and_the_range() -> None:
    price = PRICES.price(H100)
    assert (price.usd_per_hour, price.offer.provider) == (2.29, "verda")
    assert (price.low_usd_per_hour, price.high_usd_per_hour) == (2.29, 6.88)
    assert PRICES.price(H100, "spot").usd_per_hour == 0.8015
    nebius = PRICES.price(H100, "spot", provider="nebius")
    assert nebius.usd_per_hour == nebius.low_usd_per_hour == nebius.high_usd_per_hour == 1.25


def test_a_fraction_pays_its_part() -> None:
    assert PRICES.price(device("h100_sxm:1g.10gb")).usd_per_hour == pytest.approx(2.29 / 7)


@pytest.mark.parametrize(
    ("name", "market", "asked", "words"),
    [
        ("ascend_910b3", "on_demand", {}, "prices file"),
        ("a10", "spot", {}, "prices file"),
        ("h100_sxm", "on_demand", {"provider": "verdaa"}, "verda"),
        ("h100_sxm", "spot", {"provider": "aws"}, "prices file"),
    ],
)
def test_what_nobody_offers_is_refused(name: str, market: Any, asked: dict[str, str], words: str) -> None:
    with pytest.raises(PlannerError) as error:
        PRICES.price(device(name), market, **asked)
    assert words in error.value.remedy


def test_a_region_of_its_own() -> None:
    prices = prices_from({"offers": [{**OFFER, "region": "eu"}, {**OFFER, "region": "us", "provider": "b"}]})
    assert prices.price(H100, region="us").offer.provider == "b"
    with pytest.raises(PlannerError, match="in asia"):
        prices.price(H100, region="asia")


def test_own_prices_stand_alone_for_their_devices(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(
        "offers: [{device: h100_sxm, provider: ours, on_demand_usd_per_hour: 9, seen: 2026-11-20}]", encoding="utf-8"
    )
    prices = read_prices(path)
    assert prices.price(H100).usd_per_hour == 9
    assert not prices.has(H100, "spot")
    assert prices.price(device("l40s")).usd_per_hour == 1.5484


def test_warnings_depend_on_the_day() -> None:
    price = prices_from({"offers": [OFFER]}).price(H100)
    assert price.warning(date(2026, 11, 25)) == ""
    assert "98 days old" in price.warning(date(2027, 2, 26))
    assert "from the future" in price.warning(date(2026, 11, 1))
    assert "uncertain" in PRICES.price(device("mi300x")).warning(date(2025, 7, 2))


def test_a_spot_range_widens_the_interval() -> None:
    offer = {**OFFER, "spot_usd_per_hour": 1.0, "spot_range_usd_per_hour": [0.5, 1.5]}
    price = prices_from({"offers": [offer]}).price(H100, "spot")
    assert (price.usd_per_hour, price.low_usd_per_hour, price.high_usd_per_hour) == (1.0, 0.5, 1.5)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"on_demand_usd_per_hour": -1}, "on_demand_usd_per_hour", "greater than 0"),
        ({"on_demand_usd_per_hour": 0}, "on_demand_usd_per_hour", "greater than 0"),
        ({"on_demand_usd_per_hour": None}, "on_demand_usd_per_hour", "spot price"),
        ({"on_demand": 1}, "on_demand", "on_demand_usd_per_hour"),
        ({"seen": "yesterday"}, "seen", "date"),
        ({"spot_range_usd_per_hour": [1, 2]}, "spot_range_usd_per_hour", "[low, high]"),
        ({"source": "nowhere", "confidence": "high"}, "source", "no such source"),
    ],
)
def test_odd_offers_are_refused(changes: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(PlannerError) as error:
        prices_from({"offers": [{**OFFER, **changes}]}, file="mine.yaml")
    assert error.value.key == f"offers.0.{key}"
    assert words in f"{error.value.problem} {error.value.remedy}"
