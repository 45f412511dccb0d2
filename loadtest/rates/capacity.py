"""The rate at which attainment falls below the wanted share, from runs at several rates, and how sure that is. Pure.

Near the capacity c the log-odds of a request that meets the SLO fall about evenly with the log of the rate:

    logit(share at rate r) = logit(wanted) + slope x (log c - log r)

Both unknowns are fitted by likelihood on a grid, which no odd case can throw off its way: where all runs met the SLO,
or none did, or the slope is a cliff, the likelihood is flat and the interval says so. The interval holds every c whose
likelihood is not too far from the best one's, whatever the slope (profile likelihood), measured against how much runs
and batches really scattered (quasi-likelihood with Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from loadtest.rates.sequential import Batch, merged, squares_within, total

Grid = NDArray[np.float64]

# A fit looks at rates within this factor of its centre, where the line above is straight enough.
WINDOW = 1.35
# An interval that is looked at after every run, until it is narrow enough, is narrow by luck too often. Pocock's bound
# for ten looks holds for all of them together: each takes this part of the risk (0.0106 of 0.05).
POCOCK = 0.212
# Fewer runs that could have differed say too little of how much runs differ.
TELLING_RUNS = 4
# A run that misses the wanted share by so many times is swamped.
SWAMPED = 3.0
# Batches of a run are looked at one by one, and in groups.
MERGES = (1, 2, 4)
_RATES, _SLOPES = 321, 61
# A lone server with room to spare slopes below 1; an engine near its limit, above 10.
_SLOPE_RANGE = (0.2, 1000.0)
# Shares of 0 and 1 have infinite log-odds: further than this a grid point says nothing new.
_MAX_LOGIT = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate: its batches, in order."""

    rate_rps: float
    batches: tuple[Batch, ...]

    @property
    def share(self) -> float:
        due, met = total(self.batches)
        return met / due if due else math.nan


@dataclass(frozen=True, slots=True)
class Fit:
    """The capacity with its interval. An end of the interval that the runs do not bound is 0 or infinite."""

    rate_rps: float
    low_rps: float
    high_rps: float
    slope: float
    dispersion: float
    """How much more runs and batches scatter than independent requests would."""
    runs: int

    @property
    def half_width(self) -> float:
        """The longer arm of the interval, relative to the rate."""
        return max(1 - self.low_rps / self.rate_rps, self.high_rps / self.rate_rps - 1)


def fit(runs: Sequence[Run], wanted: float, centre_rps: float, confidence: float = 0.95) -> Fit | None:
    """From the runs near `centre_rps`; None if there is none. `wanted` is between 0 and 1, both excluded."""
    near = [run for run in runs if centre_rps / WINDOW <= run.rate_rps <= centre_rps * WINDOW and total(run.batches)[0]]
    if not near:
        return None
    counts = np.array([total(run.batches) for run in near], dtype=np.float64)
    logs = np.log([run.rate_rps for run in near])
    reach = math.log(WINDOW)
    slopes = np.geomspace(*_SLOPE_RANGE, _SLOPES)
    low, high = float(logs.min()) - reach, float(logs.max()) + reach
    for _ in range(2):  # the second time, only where the first found anything
        places = np.linspace(low, high, _RATES)
        likelihood = _likelihood(places, slopes, logs, counts, wanted)
        best = np.unravel_index(int(np.argmax(likelihood)), likelihood.shape)
        scatter, degrees = _dispersion(near, _shares(places[best[0]], slopes[best[1]], logs, wanted), wanted)
        profile = likelihood.max(axis=1)
        bound = student(1 - POCOCK * (1 - confidence), degrees) ** 2 / 2 * scatter
        inside = np.flatnonzero(profile >= profile.max() - bound)
        low, high = places[max(0, inside[0] - 1)], places[min(_RATES - 1, inside[-1] + 1)]
        open_low, open_high = inside[0] == 0, inside[-1] == _RATES - 1
    plateau = np.flatnonzero(profile >= profile.max() - 1e-9)
    return Fit(
        rate_rps=math.exp((places[plateau[0]] + places[plateau[-1]]) / 2),
        low_rps=0.0 if open_low else math.exp(places[inside[0]]),
        high_rps=math.inf if open_high else math.exp(places[inside[-1]]),
        slope=float(slopes[best[1]]),
        dispersion=scatter,
        runs=len(near),
    )


def student(confidence: float, degrees: float) -> float:
    """The two-sided quantile of Student's t: Fisher's expansion, within 1 % from three degrees of freedom on."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _logits(log_capacity: Grid, slope: Grid, log_rate: Grid, wanted: float) -> Grid:
    logits = math.log(wanted / (1 - wanted)) + slope * (log_capacity - log_rate)
    return np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)


def _shares(log_capacity: float, slope: float, log_rates: Grid, wanted: float) -> Grid:
    return 1 / (1 + np.exp(-_logits(np.asarray(log_capacity), np.asarray(slope), log_rates, wanted)))


def _likelihood(places: Grid, slopes: Grid, log_rates: Grid, counts: Grid, wanted: float) -> Grid:
    """Log-likelihood by [place, slope]."""
    logits = _logits(places[:, None, None], slopes[None, :, None], log_rates[None, None, :], wanted)
    due, met = counts.T
    found: Grid = -(met * np.logaddexp(0, -logits) + (due - met) * np.logaddexp(0, logits)).sum(axis=2)
    return found


def _dispersion(runs: Sequence[Run], shares: Grid, wanted: float) -> tuple[float, float]:
    """The scatter of batches around their runs or of runs around the fit, the worse of them; its degrees of freedom.

    A queue near its limit remembers longer than a batch lasts. Then neighbours are alike, batches vary too little, and
    pairs of them, or fours, tell more: the scatter is that of the scale at which it is widest. Where the limit is a
    cliff, runs are met or missed as a whole, and how much one differs from the next does not show: until it could have
    shown in `TELLING_RUNS`, a whole run counts as one request.

    The queue of a swamped run grows all through, and its batches fall with it: no chance is in that.
    """
    steady = [run for run in runs if 1 - run.share <= SWAMPED * (1 - wanted)]
    by_batches, within_degrees = max(_within(steady, together) for together in MERGES)
    due, met = np.array([total(run.batches) for run in runs], dtype=np.float64).T
    off = np.abs(met - due * shares)
    telling = int(np.count_nonzero((due * np.minimum(shares, 1 - shares) >= 1) | (off >= 1)))
    between_degrees = max(1, telling - 2)
    by_runs = float((off**2 / np.maximum(due * shares * (1 - shares), 1e-9)).sum()) / between_degrees
    unseen = float(due.mean()) if telling < TELLING_RUNS else 1.0
    return max(1.0, by_batches, by_runs, unseen), max(3.0, between_degrees + within_degrees / 2)


def _within(runs: Sequence[Run], together: int) -> tuple[float, int]:
    """The scatter of batches of `together` batches around their runs, and its degrees of freedom."""
    squares = [squares_within(merged(run.batches, together)) for run in runs]
    degrees = sum(degree for _, degree in squares)
    return (sum(square for square, _ in squares) / degrees if degrees else 1.0), degrees
