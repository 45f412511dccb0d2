"""What a device costs per hour: dated offers, on demand and spot, which a file of your own overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from planner.devices import Device
from planner.documents import Document, Row, nearest, refuse, validated
from planner.types import PlannerError

Market = Literal["on_demand", "spot"]

# GPU prices fell by a quarter to a half a year in 2024 to 2026: an older figure misleads.
STALE_AFTER_DAYS = 90


class Offer(Document):
    """What one provider asked for one whole device on one day, in US dollars per hour.

    `spot_range_usd_per_hour` is how far the spot price moved, where that is known.
    """

    device: str
    provider: str
    region: str = "any"
    on_demand_usd_per_hour: PositiveFloat | None = None
    spot_usd_per_hour: PositiveFloat | None = None
    spot_range_usd_per_hour: Row[PositiveFloat] | None = None
    # YAML readers hand dates over as dates or, where somebody took that resolver away, as texts.
    seen: Annotated[date, Field(strict=False)]
    source: str = "stated by its file"
    confidence: Literal["high", "medium", "low", "stated"] = "stated"

    @model_validator(mode="after")
    def _some_price(self) -> Self:
        if self.on_demand_usd_per_hour is None and self.spot_usd_per_hour is None:
            refuse("on_demand_usd_per_hour", None, "the offer names no price", "give an on-demand or a spot price")
        span = self.spot_range_usd_per_hour
        if span is not None:
            spot = self.spot_usd_per_hour
            if len(span) != 2 or spot is None or not span[0] <= spot <= span[1]:
                refuse("spot_range_usd_per_hour", list(span), "it does not span the spot price", "write [low, high]")
        return self

    def usd_per_hour(self, market: Market) -> float | None:
        return self.on_demand_usd_per_hour if market == "on_demand" else self.spot_usd_per_hour

    def range_usd_per_hour(self, market: Market) -> tuple[float, ...]:
        """The prices that this offer is known to have had."""
        price = self.usd_per_hour(market)
        span = self.spot_range_usd_per_hour if market == "spot" else None
        return span or (() if price is None else (price,))


@dataclass(frozen=True)
class Price:
    """One device (or fraction) for one hour, in US dollars: the best offer, and the range over all that match."""

    usd_per_hour: float
    low_usd_per_hour: float
    high_usd_per_hour: float
    offer: Offer

    def warning(self, today: date, *, after_days: int = STALE_AFTER_DAYS) -> str:
        """What is doubtful about the price on the day `today`; empty if nothing is."""
        age_days = (today - self.offer.seen).days
        where = f"{self.offer.device} at {self.offer.provider}"
        if age_days > after_days:
            return f"the price of {where} is {age_days} days old ({self.offer.seen}): check it, or give a prices file"
        if age_days < 0:
            return f"the price of {where} is from the future ({self.offer.seen}): is today {today}?"
        if self.offer.confidence == "low":
            return f"the price of {where} is uncertain ({self.offer.source}): give a prices file"
        return ""


class Prices(Document):
    """Offers from any number of providers."""

    offers: Annotated[Row[Offer], Field(min_length=1)]
    sources: Mapping[str, str] = Field(default_factory=dict)

    def price(self, device: Device, market: Market = "on_demand", *, provider: str = "", region: str = "") -> Price:
        """The cheapest matching offer for `device`, a fraction paying its part of the whole.

        Raises PlannerError when nobody offers it, which is not the same as offering it for nothing.
        """
        candidates = [
            offer
            for offer in self.offers
            if offer.device == device.whole
            and offer.usd_per_hour(market) is not None
            and provider in ("", offer.provider)
            and (region == "" or offer.region in ("any", region))
        ]
        if not candidates:
            raise self._no_offer(device, market, provider, region)
        cheapest = min(candidates, key=lambda offer: offer.usd_per_hour(market) or 0.0)
        asked = [price for offer in candidates for price in offer.range_usd_per_hour(market)]
        return Price(
            usd_per_hour=(cheapest.usd_per_hour(market) or 0.0) / device.per_device,
            low_usd_per_hour=min(asked) / device.per_device,
            high_usd_per_hour=max(asked) / device.per_device,
            offer=cheapest,
        )

    def has(self, device: Device, market: Market = "on_demand") -> bool:
        """Whether anybody offers the device."""
        return any(offer.device == device.whole and offer.usd_per_hour(market) is not None for offer in self.offers)

    def with_own(self, own: Prices) -> Prices:
        """`own` in front. A device that `own` prices loses its offers here: yours is what you pay."""
        priced = {offer.device for offer in own.offers}
        return Prices(offers=own.offers + tuple(offer for offer in self.offers if offer.device not in priced))

    def _no_offer(self, device: Device, market: Market, provider: str, region: str) -> PlannerError:
        key = f"{device.whole}.{market}_usd_per_hour"
        own = f"add an offer for {device.whole} to a prices file of your own"
        of_device = tuple(sorted({offer.provider for offer in self.offers if offer.device == device.whole}))
        if provider and provider not in of_device and of_device:
            return PlannerError("prices.yaml", key, None, f"{provider} offers none", nearest(provider, of_device))
        where = f" in {region}" if region else ""
        return PlannerError("prices.yaml", key, None, f"nobody is known to offer it{where}", own)


def prices_from(data: object, *, file: str = "prices.yaml") -> Prices:
    """The prices in parsed YAML. Raises PlannerError for unknown keys, sources and impossible prices."""
    prices = validated(Prices, data, file=file)
    offers = []
    for at, offer in enumerate(prices.offers):
        if offer.confidence == "stated":
            offers.append(offer)
            continue
        if offer.source not in prices.sources:
            key = f"offers.{at}.source"
            raise PlannerError(file, key, offer.source, "no such source", nearest(offer.source, prices.sources))
        offers.append(offer.model_copy(update={"source": prices.sources[offer.source]}))
    return Prices(offers=tuple(offers))
