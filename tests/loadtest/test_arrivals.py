"""The laws of arrival, tested statistically: each bound is four standard errors wide, at fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import (
    Family,
    RateProfile,
    Spread,
    constant_rate,
    due_times_s,
    on_off,
    ramp,
    rate_file,
    steps,
    thin,
    think_times_s,
    weibull_shape,
)
from loadtest.types import LoadTestError

COUNT = 40_000


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps_of(spread: Spread, rate_rps: float = 10.0) -> np.ndarray:
    return np.diff(due_times_s(constant_rate(rate_rps), spread, rng(), count=COUNT))


def test_a_constant_rate_is_exact() -> None:
    due = due_times_s(constant_rate(8), Spread(Family.CONSTANT), rng(), count=5)
    assert due.tolist() == [0, 0.125, 0.25, 0.375, 0.5]


def test_an_infinite_rate_is_all_at_once() -> None:
    assert due_times_s(constant_rate(math.inf), Spread(), rng(), count=3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("family", [Family.GAMMA, Family.WEIBULL])
def test_bursty_laws_have_their_rate_and_their_cv(family: Family, cv: float) -> None:
    gaps = gaps_of(Spread(family, cv))
    assert gaps.mean() == pytest.approx(0.1, rel=4 * cv / math.sqrt(COUNT))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.sort(gaps_of(Spread()))
    expected = 1 - np.exp(-10 * gaps)
    distance = np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max()
    assert distance < 1.63 / math.sqrt(len(gaps))  # Kolmogorov-Smirnov at 1 %


def test_burstiness_is_the_gamma_shape() -> None:
    assert Spread.of_burstiness(1) == Spread(Family.POISSON)
    assert Spread.of_burstiness(0.25) == Spread(Family.GAMMA, 2.0)
    assert Spread.of_burstiness(math.inf).family is Family.CONSTANT


def test_weibull_of_cv_one_is_exponential() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-9)


def test_a_ramp_has_as_many_arrivals_as_the_area_below_it() -> None:
    due = due_times_s(ramp(0, 100, 60), Spread(), rng(), duration_s=60)
    first_half = np.count_nonzero(due < 30)
    assert len(due) == pytest.approx(3000, abs=4 * math.sqrt(3000))
    assert first_half == pytest.approx(750, abs=4 * math.sqrt(750))


def test_an_even_ramp_can_be_computed_by_hand() -> None:
    due = due_times_s(ramp(0, 4, 2), Spread(Family.CONSTANT), rng(), count=8)
    assert due == pytest.approx([0, 1, math.sqrt(2), math.sqrt(3), 2, 2.25, 2.5, 2.75])


def test_steps_change_the_rate_at_once() -> None:
    due = due_times_s(steps([2, 0, 4], 1), Spread(Family.CONSTANT), rng(), duration_s=3)
    assert due == pytest.approx([0, 0.5, 2, 2.25, 2.5, 2.75])


def test_bursts_have_the_mean_rate_and_more_spread_than_poisson() -> None:
    profile = on_off(50, 0, 1, 4, duration_s=4000, rng=rng())
    due = due_times_s(profile, Spread(), rng(2), duration_s=4000)
    per_s = np.bincount(due.astype(int), minlength=4000)
    assert len(due) / 4000 == pytest.approx(10, rel=0.2)
    assert per_s.var() / per_s.mean() > 5


def test_a_rate_file_holds_each_rate_until_the_next_line() -> None:
    profile = rate_file(["# seconds,rate", "0,1", "", "10, 5"])
    assert profile == RateProfile(((0, 1), (10, 1), (10, 5)))
    with pytest.raises(LoadTestError, match="line 2"):
        rate_file(["0,1", "ten,5"])


@given(st.integers(0, 1000), st.sampled_from(list(Family)), st.integers(1, 300))
def test_a_longer_list_begins_like_a_shorter_one(seed: int, family: Family, count: int) -> None:
    spread = Spread(family, 2.0)
    short = due_times_s(ramp(1, 20, 5), spread, rng(seed), count=count)
    long = due_times_s(ramp(1, 20, 5), spread, rng(seed), count=2 * count)
    assert (long[:count] == short).all() and (np.diff(long) >= 0).all() and len(long) == 2 * count


@pytest.mark.parametrize(
    "broken",
    [
        lambda: constant_rate(0),
        lambda: constant_rate(math.nan),
        lambda: Spread.of_burstiness(-1),
        lambda: RateProfile(((1, 1),)),
        lambda: RateProfile(((0, 1), (5, 2), (4, 1))),
        lambda: RateProfile(((0, -1),)),
        lambda: due_times_s(constant_rate(1), Spread(), rng()),
        lambda: due_times_s(constant_rate(math.inf), Spread(), rng(), duration_s=1),
        lambda: due_times_s(steps([5, 0], 1), Spread(), rng(), count=100),
        lambda: thin([1], 1.5, rng()),
        lambda: weibull_shape(1000),
    ],
)
def test_what_cannot_be_had_is_refused(broken: object) -> None:
    with pytest.raises(LoadTestError):
        broken()  # type: ignore[operator]


def test_thinning_keeps_sessions_whole_and_about_the_share() -> None:
    keys = [session for session in range(4000) for _ in range(3)]
    stays = thin(keys, 0.3, rng())
    by_session = stays.reshape(-1, 3)
    assert (by_session.all(axis=1) | ~by_session.any(axis=1)).all()
    assert stays.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


def test_think_times_have_their_mean_and_cv() -> None:
    pauses = think_times_s(5.0, 0.8, COUNT, rng())
    assert pauses.mean() == pytest.approx(5.0, rel=0.02) and pauses.std() / pauses.mean() == pytest.approx(
        0.8, rel=0.05
    )
    assert think_times_s(5.0, 0.0, 2, rng()).tolist() == [5.0, 5.0]
