"""What a running deployment was measured to do: a few points of load, each with its latencies, and what it ran on.

`ferry profile` writes such files; a report of `ferry load run` gives one point more. A profile says nothing by itself:
`planner.perf.profiled` corrects the performance model by it, and `planner.profiled_costs` fits a simulated engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from planner.documents import Document, Row, refuse, validated
from planner.reader import Reader
from planner.types import PlannerError

LOAD_REPORT = "ferry-load/1"
SHARES = ("p50", "p90", "p99")


class Spread(Document):
    """One latency over the requests of a point, in milliseconds."""

    mean: PositiveFloat
    p50: PositiveFloat
    p90: PositiveFloat
    p99: PositiveFloat


class ProfilePoint(Document):
    """One load and what it gave. Lengths are mean tokens as the server counted them.

    Either `concurrency` clients that never pause, whose first requests all come at once, or `request_rate` per second
    at random times. `spread`: how far output lengths were drawn apart, (longest - shortest) / longest. Requests were
    sent one by one per client: `requests` counts those of all.
    """

    isl: PositiveFloat
    osl: Annotated[float, Field(ge=1)]
    concurrency: PositiveFloat | None = None
    request_rate: PositiveFloat | None = None
    requests: PositiveInt
    spread: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ttft_ms: Spread
    tpot_ms: Spread | None = None  # nothing to measure where answers are one token long
    out_tok_s: PositiveFloat

    @model_validator(mode="after")
    def _one_load(self) -> Self:
        if (self.concurrency is None) == (self.request_rate is None):
            refuse("concurrency", self.concurrency, "exactly one load is needed", "give concurrency or request_rate")
        return self


class Profile(Document):
    """Points of one deployment: a model in a format on `system` under an engine, `replicas` of the layout.

    `system` is a name of the device catalogue, or a new one: then the points stand in for its data sheet, and
    `memory_gib` says what no point can. `kv_blocks` is the cache of one engine, in blocks of `block_size_tokens`.
    """

    format: Literal["ferry-profile/1"] = "ferry-profile/1"
    model: str
    system: str
    kind: Literal["gpu", "npu", "tpu", "cpu"] = "gpu"
    memory_gib: PositiveFloat | None = None
    measured: Annotated[date, Field(strict=False)]
    engine: str = "vllm"
    engine_version: str = ""
    tp: PositiveInt = 1
    pp: PositiveInt = 1
    dp: PositiveInt = 1
    ep: PositiveInt = 1
    replicas: PositiveInt = 1
    quant: str | None = None
    kv_cache_dtype: str | None = None
    eager: bool = False
    async_scheduling: bool = True
    max_num_batched_tokens: PositiveInt | None = None
    max_num_seqs: PositiveInt | None = None
    kv_blocks: PositiveInt | None = None
    block_size_tokens: PositiveInt | None = None
    note: str = ""
    points: Annotated[Row[ProfilePoint], Field(min_length=1)]

    def with_points(self, *points: ProfilePoint) -> Profile:
        """This profile and more points of the same deployment."""
        return self.model_copy(update={"points": (*self.points, *points)})

    def document(self) -> dict[str, object]:
        """What `profile_from` reads back, as plain values; what is not known is left out."""
        tree: dict[str, object] = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return {"format": self.format, **tree}


def profile_from(data: object, *, file: str) -> Profile:
    """The profile in parsed YAML or JSON. Raises PlannerError for unknown keys and impossible numbers."""
    return validated(Profile, data, file=file)


def point_of_load_report(data: Mapping[str, object], *, file: str, spread: float = 0.0) -> ProfilePoint:
    """The point that a report of `ferry load run` (load-<id>.json) measured, over all its requests.

    A run with a concurrency limit counts as a closed loop of so many clients. `spread` is as in ProfilePoint; the
    report does not say it. Raises PlannerError for another file, and for a run that failed or that the client limited:
    its latencies say nothing about the server.
    """
    report = Reader(config=data, file=file)
    if data.get("format") != LOAD_REPORT:
        raise PlannerError(
            file, "format", data.get("format"), "not a load report", "give the .json of `ferry load run`"
        )
    if data.get("verdict") == "INVALID":
        raise PlannerError(file, "verdict", "INVALID", "the client was the limit", "measure again with less load")
    total = report.section("total")
    outcomes = total.section("outcomes").config
    failed = {name: count for name, count in outcomes.items() if name != "ok"}
    if failed:
        raise PlannerError(file, "total.outcomes", failed, "not every request was answered", "measure again")
    clients = report.section("spec").section("limits").config.get("concurrency")
    load = {"concurrency": clients} if clients is not None else {"request_rate": total.config.get("due_rps")}
    metrics = total.section("metrics").config
    return validated(
        ProfilePoint,
        {
            "isl": total.config.get("mean_prompt_tokens"),
            "osl": total.config.get("mean_output_tokens"),
            **load,
            "requests": outcomes.get("ok"),
            "spread": spread,
            "ttft_ms": _spread(metrics.get("ttft")),
            "tpot_ms": _spread(metrics.get("tpot")),
            "out_tok_s": total.config.get("output_tokens_per_s"),
        },
        file=file,
    )


def _spread(metric: object) -> dict[str, object] | None:
    if not isinstance(metric, Mapping):
        return None
    completed = metric.get("completed_ms")
    shares = completed if isinstance(completed, Mapping) else {}
    return {"mean": metric.get("mean_ms"), **{share: shares.get(share) for share in SHARES}}
