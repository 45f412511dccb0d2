"""Fits the model to measured points: a few coefficients for all, then corrections that shrink towards none.

Errors count as logarithms, so that 2 ms for 1 ms is as bad as 1 ms for 2 ms, and large ones hardly count more than
middling ones (a point may be wrong). Every unknown has a belief that holds it where the points say nothing (empirical
Bayes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy
from numpy.typing import NDArray

from planner.perf.arrays import Array
from planner.perf.calibration import KNOBS, Calibration, Correction, deployment_key
from planner.perf.coefficients import BELIEFS, NAMES, Coefficients
from planner.perf.prepared import Index, Prepared

# Scatter of measurements about a perfect model (natural log); beyond it, an error is one of the point or the physics.
TPOT_SCATTER, TTFT_SCATTER = 0.1, 0.25
BASE_PRIOR = 0.5  # weight of a mean point against beliefs; chosen for errors on held-out models
# How far a correction may go (natural log, one sigma), by level.
DEVICE_SIGMA = 0.10
DEPLOYMENT_SIGMAS: Mapping[str, float] = {"decode": 0.2, "kv": 0.2, "prefill": 0.25, "sequence": 0.4, "request": 0.3}
MAX_CALLS = 8


@dataclass(frozen=True)
class Points:
    """Measured means of prepared questions, in seconds; NaN where a figure was not measured."""

    prepared: Prepared
    ttft_s: Array
    tpot_s: Array

    def take(self, rows: Index) -> Points:
        return Points(self.prepared.take(rows), self.ttft_s[rows], self.tpot_s[rows])

    @property
    def keys(self) -> list[str]:
        return [deployment_key(question) for question in self.prepared.questions]


def fit_base(points: Points, start: Calibration) -> Calibration:
    """New base coefficients; deployments with many points do not outweigh the others. Corrections stay."""
    keys = points.keys
    counts = Counter(keys)
    weights = np.array([counts[key] ** -0.5 for key in keys])
    weights = weights * BASE_PRIOR / weights.mean()
    corrections = start.coefficients(points.prepared.questions)
    factors = {name: getattr(corrections, name) / start.base[name] for name in NAMES}

    def base(x: Array) -> dict[str, float]:
        return {
            name: BELIEFS[name].value * float(np.exp(v * BELIEFS[name].sigma)) for name, v in zip(NAMES, x, strict=True)
        }

    def coefficients(x: Array) -> Coefficients:
        return Coefficients(**{name: value * factors[name] for name, value in base(x).items()})

    guess = np.array([np.log(start.base[name] / BELIEFS[name].value) / BELIEFS[name].sigma for name in NAMES])
    found = _solve(points, coefficients, weights / _effective(weights), guess)
    return replace(start, base=base(found))


def fit_devices(points: Points, start: Calibration) -> Calibration:
    """Corrections of devices, from all models measured on them."""
    found = _fit_level(points, start, [q.device.whole for q in points.prepared.questions], DEVICE_SIGMA)
    return replace(start, devices={**start.devices, **found})


def fit_deployments(points: Points, start: Calibration, *, width: float = 1.0) -> Calibration:
    """Corrections of each (model, device, format, engine) among the points; six to twelve points each will do.

    `width`: how many times further than usual the deployment may be from `start`.
    """
    bare = replace(start, deployments={key: c for key, c in start.deployments.items() if key not in set(points.keys)})
    sigmas = {knob: sigma * width for knob, sigma in DEPLOYMENT_SIGMAS.items()}
    found = _fit_level(points, bare, points.keys, sigmas, width)
    return replace(bare, deployments={**bare.deployments, **found})


def _fit_level(
    points: Points, start: Calibration, keys: Sequence[str], sigma: float | Mapping[str, float], width: float = 1.0
) -> dict[str, Correction]:
    knobs = list(KNOBS)
    sigmas = np.array([sigma if isinstance(sigma, float) else sigma[knob] for knob in knobs])
    found: dict[str, Correction] = {}
    for key in dict.fromkeys(keys):
        part = points.take(np.array([row for row, own in enumerate(keys) if own == key], np.intp))
        before = start.coefficients(part.prepared.questions)
        weights = _level_weights(part)
        model, x = partial(_corrected, before, knobs, sigmas), np.zeros(len(knobs))
        if width > 1:  # from afar all points look wild: heed them all, and doubt some once the fit is near
            x = _solve(part, model, weights, x, robust=False)
        x = _solve(part, model, weights, x)
        found[key] = {knob: round(float(value), 4) for knob, value in zip(knobs, x * sigmas, strict=True)}
    return found


def _level_weights(points: Points) -> Array:
    """Points of one deployment are alike, so they count as fewer than they are."""
    counts = Counter(points.keys)
    return np.array([counts[key] ** -0.25 for key in points.keys])


def _corrected(co: Coefficients, knobs: Sequence[str], sigmas: Array, x: Array) -> Coefficients:
    columns = {name: getattr(co, name) for name in NAMES}
    for knob, log_factor in zip(knobs, x * sigmas, strict=True):
        for name, sign in KNOBS[knob].items():
            columns[name] = columns[name] * np.exp(sign * log_factor)
    return Coefficients(**columns)


def _effective(weights: Array) -> float:
    """Keeps the beliefs' say independent of how many points there are beyond a few per unknown."""
    return float(np.sqrt(max(1.0, len(weights) / (8 * len(NAMES)))))


def _solve(
    points: Points, coefficients: Callable[[Array], Coefficients], weights: Array, guess: Array, *, robust: bool = True
) -> NDArray[np.float64]:
    log_tpot, log_ttft = np.log(points.tpot_s), np.log(points.ttft_s)

    def residuals(x: Array) -> Array:
        served = points.prepared.served(coefficients(x))
        tpot = (np.log(served.tpot_s) - log_tpot) / TPOT_SCATTER
        ttft = (np.log(served.ttft_s) - log_ttft) / TTFT_SCATTER
        if robust:
            tpot, ttft = _robust(tpot), _robust(ttft)
        return np.concatenate([np.nan_to_num(tpot * weights), np.nan_to_num(ttft * weights), x])

    return np.asarray(scipy.optimize.least_squares(residuals, guess, max_nfev=MAX_CALLS).x)


def _robust(z: Array) -> Array:
    """Its square grows as z² near zero and as log z² far away (Cauchy): what is far off is not followed at all."""
    return np.asarray(np.sign(z) * np.sqrt(np.log1p(z * z)))
