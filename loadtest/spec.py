"""What a run is asked to do, and what it saw. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadtest.audit import WorkerAudit
from loadtest.cost import Rent
from loadtest.types import Job, Limits, Record, Slo, Target
from loadtest.watch.types import Watched


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What to run. Jobs hold the whole load, fixed before the start: the same list makes the same run."""

    target: Target
    jobs: Sequence[Job]
    limits: Limits = field(default_factory=Limits)
    slo: Slo = field(default_factory=Slo)
    workers: int = 1
    """0 with `ray_address`: one on each node."""
    warmup_s: float = 0.0
    """Requests due earlier than this are sent but not counted."""
    lasts_s: float | None = None
    """How long the jobs are due, where that is known and not just the last due time."""
    stall_ms: float = 1000.0
    """A gap above it is flagged as a stall."""
    keep_text: bool = False
    class_slos: Mapping[str, Slo] = field(default_factory=dict)
    """Of SLO classes that `slo` is not for."""
    rent: Rent | None = None
    ray_address: str | None = None
    """Workers are tasks of this Ray cluster; None: processes of this machine."""

    def slo_of(self, slo_class: str) -> Slo:
        return self.class_slos.get(slo_class, self.slo)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything that was seen. `start_ns` and the times in records are of the monotonic clock."""

    spec: RunSpec
    run_id: str
    start_ns: int
    started_at_s: float
    """Seconds since 1970."""
    records: tuple[Record, ...]
    workers: tuple[WorkerAudit, ...]
    interrupted: bool
    died: tuple[str, ...]
    watched: Watched | None = None
    """None: nobody looked at the server."""
    served: tuple[str, ...] | None = None
    """Models that the server names; asked for only where requests were refused as if theirs were not there."""
