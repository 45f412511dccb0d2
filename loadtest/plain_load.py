"""One kind of request at one rate: what drills and validations send. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.load import LoadPlan, make_load
from loadtest.types import Job


@dataclass(frozen=True, slots=True)
class PlainLoad:
    """Lengths in tokens, about. `burstiness`: gamma shape of the gaps between arrivals; 1 Poisson, inf even."""

    endpoint: str
    model: str
    isl: int
    osl: int
    seed: int
    burstiness: float = 1.0
    ignore_eos: bool = False

    def jobs(
        self,
        rate_rps: float,
        *,
        duration_s: float | None = None,
        requests: int | None = None,
        concurrency: int | None = None,
    ) -> list[Job]:
        """An infinite rate: a closed loop. The same arguments make the same bytes. Raises LoadTestError."""
        plan = LoadPlan(
            endpoint=self.endpoint, model=self.model, input_words=self.isl, output_tokens=self.osl,
            ignore_eos=self.ignore_eos, stream=True, seed=self.seed, request_rate_rps=rate_rps,
            burstiness=self.burstiness, family=None, cv=1.0, ramp_from_rps=None, bursts="", rate_file=None, trace=None,
            trace_format="", trace_keep=1.0, concurrency=concurrency, requests=requests, duration_s=duration_s,
        )  # fmt: skip
        return make_load(plan).jobs


def burstiness_of(cv: float) -> float:
    """The gamma shape of gaps whose standard deviation is `cv` times their mean."""
    return 1 / (cv * cv) if cv > 0 else math.inf
