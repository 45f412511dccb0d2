"""The planner's laws within the bounds of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import Family, Spread, constant_rate, due_times_s, ramp, thin, think_times_s
from loadtest.types import LoadTestError
from planner import steps

COUNT = 40_000


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert due_times_s(constant_rate(math.inf), Spread(), rng(), count=3).tolist() == [0, 0, 0]


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.sort(np.diff(due_times_s(constant_rate(10), Spread(), rng(), count=COUNT)))
    expected = 1 - np.exp(-10 * gaps)
    distance = np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max()
    assert distance < 1.63 / math.sqrt(len(gaps))  # Kolmogorov-Smirnov at 1 %


def test_whichever_bound_comes_first_ends_the_list() -> None:
    even = Spread(Family.CONSTANT)
    assert due_times_s(constant_rate(2), even, rng(), duration_s=2).tolist() == [0, 0.5, 1, 1.5]
    assert due_times_s(constant_rate(2), even, rng(), count=3, duration_s=2).tolist() == [0, 0.5, 1]
    assert len(due_times_s(constant_rate(2), even, rng(), count=10_000, duration_s=2)) == 4
    assert len(due_times_s(constant_rate(2), even, rng(), count=0)) == 0


def test_a_rate_that_falls_to_0_ends_a_list_with_a_duration() -> None:
    assert due_times_s(steps([2, 0], 1), Spread(Family.CONSTANT), rng(), duration_s=100).tolist() == [0, 0.5]


@given(st.integers(0, 1000), st.sampled_from(list(Family)), st.integers(1, 300) | st.integers(4000, 5000))
def test_a_longer_list_begins_like_a_shorter_one(seed: int, family: Family, count: int) -> None:
    spread = Spread(family, 2.0)
    short = due_times_s(ramp(1, 20, 5), spread, rng(seed), count=count)
    long = due_times_s(ramp(1, 20, 5), spread, rng(seed), count=2 * count)
    assert (long[:count] == short).all() and (np.diff(long) >= 0).all() and len(long) == 2 * count


@pytest.mark.parametrize(
    "broken",
    [
        lambda: due_times_s(constant_rate(1), Spread(), rng()),
        lambda: due_times_s(constant_rate(math.inf), Spread(), rng(), duration_s=1),
        lambda: due_times_s(steps([5, 0], 1), Spread(), rng(), count=100),
        lambda: thin([1], 1.5, rng()),
    ],
)
def test_what_cannot_be_had_is_refused(broken: Callable[[], object]) -> None:
    with pytest.raises(LoadTestError):
        broken()


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
