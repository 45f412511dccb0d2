"""Rates over time and gaps between arrivals, tested statistically: each bound is four standard errors wide."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from planner import (
    SPELLS,
    Family,
    PlannerError,
    RateProfile,
    Spread,
    constant_rate,
    on_off,
    ramp,
    rate_file,
    spells,
    steps,
    weibull_shape,
)

COUNT = 40_000


def uniforms(count: int = COUNT, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(count)


def ticks(count: int) -> np.ndarray:
    """Of a metronome."""
    return Spread(Family.CONSTANT).points(uniforms(count))


def test_a_constant_rate_is_exact() -> None:
    assert constant_rate(8).times_s(ticks(5)).tolist() == [0, 0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("family", [Family.GAMMA, Family.WEIBULL])
def test_bursty_laws_have_their_rate_and_their_cv(family: Family, cv: float) -> None:
    gaps = np.diff(constant_rate(10).times_s(Spread(family, cv).points(uniforms())))
    assert gaps.mean() == pytest.approx(0.1, rel=4 * cv / math.sqrt(COUNT))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)


def test_burstiness_is_the_gamma_shape() -> None:
    assert Spread.of_burstiness(1) == Spread(Family.POISSON)
    assert Spread.of_burstiness(0.25) == Spread(Family.GAMMA, 2.0)
    assert Spread.of_burstiness(math.inf).family is Family.CONSTANT


def test_weibull_of_cv_one_is_exponential() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-9)


def test_a_ramp_has_as_many_arrivals_as_the_area_below_it() -> None:
    due = ramp(0, 100, 60).times_s(Spread().points(uniforms()))
    assert np.count_nonzero(due < 60) == pytest.approx(3000, abs=4 * math.sqrt(3000))
    assert np.count_nonzero(due < 30) == pytest.approx(750, abs=4 * math.sqrt(750))


def test_an_even_ramp_can_be_computed_by_hand() -> None:
    due = ramp(0, 4, 2).times_s(ticks(8))
    assert due == pytest.approx([0, 1, math.sqrt(2), math.sqrt(3), 2, 2.25, 2.5, 2.75])


def test_a_falling_ramp_can_too() -> None:
    assert ramp(4, 0, 2).times_s(ticks(4)) == pytest.approx([0, 2 - math.sqrt(3), 2 - math.sqrt(2), 1])


def test_steps_change_the_rate_at_once_and_the_last_holds() -> None:
    assert steps([2, 0, 4], 1).times_s(ticks(7)) == pytest.approx([0, 0.5, 2, 2.25, 2.5, 2.75, 3.0])


def test_where_the_rate_stays_at_0_nothing_comes() -> None:
    assert steps([2, 0], 1).times_s(ticks(4)).tolist() == [0, 0.5, math.inf, math.inf]


def test_spells_can_begin_again() -> None:
    again = spells([1, 1], [2, 0], repeats=True)
    assert again.times_s(ticks(5)).tolist() == [0, 0.5, 2, 2.5, 4]


def test_bursts_have_the_mean_rate_and_more_spread_than_poisson() -> None:
    profile = on_off(50, 0, 1, 4, turns=uniforms(SPELLS, seed=3))
    due = profile.times_s(Spread().points(uniforms()))
    per_s = np.bincount(due.astype(int))
    assert len(due) / due[-1] == pytest.approx(10, rel=0.2)
    assert per_s.var() / per_s.mean() > 5


def test_a_rate_file_holds_each_rate_until_the_next_line() -> None:
    profile = rate_file(["# seconds,rate", "0,1", "", "10, 5"])
    assert profile == RateProfile(((0, 1), (10, 1), (10, 5)))
    with pytest.raises(PlannerError, match="line 2"):
        rate_file(["0,1", "ten,5"])


@pytest.mark.parametrize(
    "broken",
    [
        lambda: constant_rate(0),
        lambda: constant_rate(math.nan),
        lambda: Spread.of_burstiness(-1),
        lambda: Spread(Family.GAMMA, 0.0),
        lambda: RateProfile(((1, 1),)),
        lambda: RateProfile(((0, 1), (5, 2), (4, 1))),
        lambda: RateProfile(((0, -1),)),
        lambda: spells([1, 1], [0, 0], repeats=True),
        lambda: weibull_shape(1000),
    ],
)
def test_what_cannot_be_had_is_refused(broken: Callable[[], object]) -> None:
    with pytest.raises(PlannerError):
        broken()
