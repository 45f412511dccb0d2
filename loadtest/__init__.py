"""Load tests of an OpenAI-compatible endpoint: a measuring instrument that tells its own error. It speaks HTTP only.

`run(RunSpec(...))` sends a list of jobs that is fixed before the start and gives back raw records; `report.build` makes
the figures of them. The parts that decide (`arrivals`, `jobs`, `reading`, `metrics`, `audit`, `report`) are pure.
"""

from loadtest.report import Report, Verdict, build
from loadtest.results import read_records, save
from loadtest.runner import run
from loadtest.spec import RunResult, RunSpec
from loadtest.types import Job, Limits, LoadTestError, Outcome, Record, Slo, Target

__all__ = [
    "Job",
    "Limits",
    "LoadTestError",
    "Outcome",
    "Record",
    "Report",
    "RunResult",
    "RunSpec",
    "Slo",
    "Target",
    "Verdict",
    "build",
    "read_records",
    "run",
    "save",
]
