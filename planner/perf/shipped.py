"""Calibrations as files: the one that ships with the planner, and those that users write."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import isfinite
from pathlib import Path

from planner.files import read_yaml_object
from planner.perf.calibration import GUESSED_SIGMAS, KNOBS, Calibration, Correction, Rung, Sigma
from planner.perf.coefficients import NAMES
from planner.types import PlannerError

SHIPPED = Path(__file__).with_name("coefficients.yaml")
LEVELS = ("devices", "deployments")


@cache
def shipped_calibration() -> Calibration:
    """Read once: the file ships with the code, so it cannot change under a running process."""
    return read_calibration(SHIPPED)


def read_calibration(path: Path) -> Calibration:
    """Raises PlannerError with file and key for a number that is missing, unknown or odd."""
    data = read_yaml_object(path)
    base = _numbers(data.get("base"), path, "base", NAMES)
    if set(base) != set(NAMES):
        missing = sorted(set(NAMES) - set(base))
        raise PlannerError(path.name, "base", ", ".join(missing), "coefficients are missing", "fit the file again")
    if min(base.values()) <= 0:
        raise PlannerError(path.name, "base", min(base.values()), "must be above zero", "fit the file again")
    levels = {level: _corrections(data.get(level) or {}, path, level) for level in LEVELS}
    own = _sigma_table(data.get("own_sigmas") or {}, path, "own_sigmas")
    return Calibration(base=base, sigmas=_sigmas(data.get("sigmas") or {}, path), own_sigmas=own, **levels)


def calibration_document(calibration: Calibration) -> dict[str, object]:
    """What `read_calibration` reads back, as plain mappings."""
    own = {key: {"tpot": s.tpot, "ttft": s.ttft} for key, s in calibration.own_sigmas.items()}
    return {
        "base": {name: float(f"{value:.4g}") for name, value in calibration.base.items()},
        **{level: {key: dict(value) for key, value in getattr(calibration, level).items()} for level in LEVELS},
        "sigmas": {rung: {"tpot": s.tpot, "ttft": s.ttft} for rung, s in calibration.sigmas.items()},
        **({"own_sigmas": own} if own else {}),
    }


def _corrections(data: object, path: Path, key: str) -> dict[str, Correction]:
    if not isinstance(data, Mapping):
        raise PlannerError(path.name, key, data, "a mapping is needed", "fit the file again")
    return {str(name): _numbers(value, path, f"{key}.{name}", tuple(KNOBS)) for name, value in data.items()}


def _sigmas(data: object, path: Path) -> dict[Rung, Sigma]:
    read = _sigma_table(data, path, "sigmas")
    return {rung: read.get(rung, guess) for rung, guess in GUESSED_SIGMAS.items()}


def _sigma_table(data: object, path: Path, key: str) -> dict[str, Sigma]:
    if not isinstance(data, Mapping):
        raise PlannerError(path.name, key, data, "a mapping is needed", "fit the file again")
    found = {}
    for name, value in data.items():
        numbers = _numbers(value, path, f"{key}.{name}", ("tpot", "ttft"))
        if set(numbers) != {"tpot", "ttft"}:
            raise PlannerError(path.name, f"{key}.{name}", value, "tpot and ttft are needed", "fit the file again")
        found[str(name)] = Sigma(**numbers)
    return found


def _numbers(data: object, path: Path, key: str, known: tuple[str, ...]) -> dict[str, float]:
    if not isinstance(data, Mapping):
        raise PlannerError(path.name, key, data, "a mapping of numbers is needed", "fit the file again")
    found: dict[str, float] = {}
    for name, value in data.items():
        if name not in known:
            raise PlannerError(path.name, f"{key}.{name}", value, "is not a known key", f"use: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise PlannerError(path.name, f"{key}.{name}", value, "a number is needed", "fit the file again")
        found[str(name)] = float(value)
    return found
