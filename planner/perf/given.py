"""What a user gives as `--calibration`: a calibration, a profile, or the results of a validation."""

from __future__ import annotations

from pathlib import Path

from planner.files import read_yaml_object
from planner.perf.calibration import Calibration
from planner.perf.profiled import calibrated_on
from planner.perf.shipped import read_calibration, shipped_calibration
from planner.profile import profile_from
from planner.validated_plan import FORMAT, profile_of_results

PROFILE = "ferry-profile/1"


def calibration_given(path: Path | None) -> Calibration:
    """The shipped one where nothing is given. Raises PlannerError with file and key."""
    if path is None:
        return shipped_calibration()
    data = read_yaml_object(path)
    if data.get("format") == FORMAT:
        return calibrated_on(profile_of_results(data, file=path.name))
    if data.get("format") == PROFILE:
        return calibrated_on(profile_from(data, file=path.name))
    return read_calibration(path)
