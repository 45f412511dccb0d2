"""What the flags say, as the types of the load test. Pure; every mistake is a LoadTestError that names the flag."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from loadtest.arrivals import SPELLS, Family, RateProfile, Spread, constant_rate, on_off, ramp
from loadtest.types import LoadTestError, Slo

_SLO_NAMES = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2e": "e2e_ms", "e2el": "e2e_ms", "max_gap": "max_gap_ms"}


def parse_slo(goodput: Iterable[str], attainment: float) -> Slo:
    """From `ttft:500 tpot:50`, in one string or several."""
    if not 0 < attainment <= 1:
        raise LoadTestError(f"--slo-attainment-fraction is {attainment}: it must be above 0 and at most 1")
    slo = Slo(attainment=attainment)
    for item in " ".join(goodput).split():
        name, _, limit = item.partition(":")
        field = _SLO_NAMES.get(name)
        if field is None:
            raise LoadTestError(f"--goodput {item}: {name!r} is none of {', '.join(_SLO_NAMES)}")
        try:
            limit_ms = float(limit)
        except ValueError:
            limit_ms = math.nan
        if not 0 < limit_ms < math.inf:
            raise LoadTestError(f"--goodput {item}: {limit!r} is no number of milliseconds above 0")
        changed: dict[str, Any] = {field: limit_ms}
        slo = replace(slo, **changed)
    return slo


def check_above_zero(given: Mapping[str, float | None]) -> None:
    """Values by flag, None where it was not given. Raises LoadTestError."""
    for flag, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise LoadTestError(f"{flag} is {value:g}: it must be a number above 0")


def parse_workers(text: str) -> tuple[int, str | None]:
    """How many workers, and the Ray cluster that runs them; 0 there means one on each node.

    `4`, `ray://head:10001`, `ray://head:10001?workers=8`, `ray:auto`, `ray:10.0.0.1:6379?workers=2`.
    """
    address, _, query = text.partition("?")
    if address.startswith("ray:"):
        key, _, count = query.partition("=")
        if query and (key != "workers" or not count.isdecimal() or not int(count)):
            raise LoadTestError(f"--workers {text}: after `?` write workers=N")
        where = address if address.startswith("ray://") else address.removeprefix("ray:")
        if where in ("", "ray://"):
            raise LoadTestError(f"--workers {text}: no address; write ray://HOST:10001, or ray:auto")
        return int(count or 0), where
    if not text.isdecimal() or not int(text):
        raise LoadTestError(f"--workers {text}: write a number above 0, or the address of a Ray cluster")
    return int(text), None


def parse_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise LoadTestError("--header wants `Name: value`")
    return name.strip(), value.strip()


def spread_of(family: Family | None, cv: float, burstiness: float) -> Spread:
    if family is None:
        return Spread.of_burstiness(burstiness)
    if not cv > 0:
        raise LoadTestError(f"--cv is {cv}: it must be above 0")
    return Spread(family, cv)


def profile_of(
    rate_rps: float, ramp_from_rps: float | None, bursts: str, duration_s: float | None, rng: np.random.Generator
) -> RateProfile:
    """The rate over time from --request-rate, --ramp-up-start-rps and --on-off."""
    steady = constant_rate(rate_rps)
    if ramp_from_rps is None and not bursts:
        return steady
    if duration_s is None or math.isinf(rate_rps):
        raise LoadTestError("a ramp and bursts need a --benchmark-duration and a finite --request-rate")
    if ramp_from_rps is not None and bursts:
        raise LoadTestError("--ramp-up-start-rps and --on-off cannot go together: write a --rate-file")
    if ramp_from_rps is not None:
        return ramp(ramp_from_rps, rate_rps, duration_s)
    try:
        on_s, off_s = (float(part) for part in bursts.split(":"))
    except ValueError as error:
        raise LoadTestError(f"--on-off {bursts!r} is not ON_S:OFF_S") from error
    if not (0 < on_s < math.inf and 0 < off_s < math.inf):
        raise LoadTestError(f"--on-off {bursts}: both must be numbers above 0")
    return on_off(rate_rps, 0.0, on_s, off_s, turns=rng.random(SPELLS))
