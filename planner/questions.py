"""The question to `ferry plan`, as a file (configs/question.*.yaml) or as flags: both are the same document.

Paths count from the question's folder. The promise stands in an SLO file, or in `ttft_ms`, `tpot_ms` and `e2e_ms`;
the traffic in a workload file, or in `isl`, `osl` and `request_rate` (or `concurrency`, or neither for the highest).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from planner.arrivals import Rate
from planner.devices import Device, Devices
from planner.documents import Document, Row, refuse, validated
from planner.files import (
    folder_weight_bytes,
    read_devices,
    read_prices,
    read_slo,
    read_spot_markets,
    read_workload,
    weight_files,
)
from planner.lengths import Count
from planner.library import shape_of_model
from planner.perf.shipped import read_calibration, shipped_calibration
from planner.prices import Prices
from planner.search.question import SAFE_PROBABILITY, SPOT_EPSILON, PlanQuestion, Space, SpotTerms
from planner.slo import Slo, slo_from
from planner.workload import Workload, workload_from

Pools = Literal["any", "mixed", "disaggregated"]
Statistic = Literal["mean", "p50", "p90", "p95", "p99"]

LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
TRAFFIC = ("isl", "osl", "prefix", "request_rate", "concurrency")
# The one class of a promise that stands in flags.
CLASS = "requests"
# With the highest rate asked for, the rate of the workload is only its pattern.
ANY_RATE_RPS = 1.0


class SpotAsked(Document):
    """Spot is allowed in a market of spot.yaml (or of the file `markets`), with the notice of a provider."""

    market: str
    notice: str = "aws"
    markets: str | None = None
    epsilon: Annotated[float, Field(gt=0, lt=1)] = SPOT_EPSILON
    warm_up_s: NonNegativeFloat | None = None
    least_on_demand: NonNegativeInt = 0


class QuestionFile(Document):
    """A question. `system` names devices, none of them means all that have a price."""

    model: str
    slo: str | None = None
    workload: str | None = None
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None
    e2e_ms: PositiveFloat | None = None
    statistic: Statistic = "p99"
    isl: Count | None = None
    osl: Count | None = None
    prefix: Count | None = None  # tokens that all prompts begin with
    request_rate: Rate | None = None
    concurrency: PositiveInt | None = None
    system: Row[str] = ()
    devices: str | None = None
    prices: str | None = None
    provider: str = ""
    region: str = ""
    spot: SpotAsked | None = None
    total_gpus: PositiveInt | None = None
    most_usd_per_hour: PositiveFloat | None = None
    maximise_rate: bool = False
    quant: Row[str] = ()  # `none` is the checkpoint as it is
    kv_cache_dtype: Row[str] = ()
    pools: Pools = "any"
    fractions: bool = True  # of devices: MIG, time slices
    max_model_len: PositiveInt | None = None
    calibration: str | None = None
    confidence: Annotated[float | None, Field(ge=0, lt=1)] = None
    safe_probability: Annotated[float, Field(gt=0, lt=1)] = SAFE_PROBABILITY
    verify_top: PositiveInt = 8
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_promise_one_traffic(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if self.slo is not None and given:
            refuse(given[0], getattr(self, given[0]), f"the SLO file {self.slo} promises too", "keep one of the two")
        if self.slo is None and not given:
            refuse("slo", None, "no latency is promised", "give an SLO file, or ttft_ms and tpot_ms")
        told = [name for name in TRAFFIC if getattr(self, name) is not None]
        if self.workload is not None and told:
            refuse(told[0], getattr(self, told[0]), f"the workload {self.workload} says so too", "keep one of the two")
        if self.workload is None:
            self._flags_are_traffic()
        return self

    def _flags_are_traffic(self) -> None:
        if self.slo is not None:
            refuse("workload", None, "an SLO file needs its traffic", "give a workload file with the same classes")
        for key in ("isl", "osl"):
            if getattr(self, key) is None:
                refuse(key, None, "it is needed where there is no workload file", f"give {key} in tokens")
        if self.request_rate is not None and self.concurrency is not None:
            refuse("concurrency", self.concurrency, "request_rate is given too", "keep one of the two")
        if self.loadless and self.total_gpus is None:
            remedy = "give request_rate, or total_gpus for the most they bear"
            refuse("request_rate", None, "no rate is asked for", remedy)

    @property
    def loadless(self) -> bool:
        """Whether the question leaves open how much traffic there is."""
        return self.workload is None and self.request_rate is None and self.concurrency is None


def question_file(data: object, *, file: str) -> QuestionFile:
    """The question in parsed YAML or flags. Raises PlannerError."""
    return validated(QuestionFile, data, file=file)


def question_of(asked: QuestionFile, folder: Path) -> PlanQuestion:
    """The question with all that it names read in; paths count from `folder`. Raises PlannerError."""
    shape = shape_of_model(folder / asked.model if (folder / asked.model / "config.json").is_file() else asked.model)
    prices = read_prices(_path(folder, asked.prices))
    calibration = _path(folder, asked.calibration)
    slo, workload = _promise(asked, folder), _traffic(asked, folder)
    model_folder = Path(asked.model)
    return PlanQuestion(
        model=asked.model,
        shape=shape,
        slo=slo,
        workload=workload,
        devices=_chosen(read_devices(_path(folder, asked.devices)), asked.system, prices),
        prices=prices,
        calibration=read_calibration(calibration) if calibration else shipped_calibration(),
        space=Space(
            quants=tuple(None if word == "none" else word for word in asked.quant),
            kv_dtypes=asked.kv_cache_dtype,
            mixed=asked.pools != "disaggregated",
            disaggregated=asked.pools != "mixed",
            fractions=asked.fractions,
        ),
        spot=_spot(asked.spot, folder),
        total_gpus=asked.total_gpus,
        most_usd_per_hour=asked.most_usd_per_hour,
        maximise_rate=asked.maximise_rate or asked.loadless,
        confidence=asked.confidence,
        safe_probability=asked.safe_probability,
        provider=asked.provider,
        region=asked.region,
        exact_weight_bytes=folder_weight_bytes(model_folder) if weight_files(model_folder) else None,
        max_model_len_tokens=asked.max_model_len,
        verify_top=asked.verify_top,
        seed=asked.seed,
    )


def _promise(asked: QuestionFile, folder: Path) -> Slo:
    if asked.slo is not None:
        return read_slo(folder / asked.slo)
    limits = {name: getattr(asked, name) for name in LIMITS}
    promised = {name: {asked.statistic: limit_ms} for name, limit_ms in limits.items() if limit_ms is not None}
    return slo_from({"classes": {CLASS: promised}}, file="settings")


def _traffic(asked: QuestionFile, folder: Path) -> Workload:
    if asked.workload is not None:
        return read_workload(folder / asked.workload)
    stream: dict[str, object] = {
        "lengths": {"kind": "constant", "isl": asked.isl, "osl": asked.osl},
        "arrivals": {"kind": "poisson", "rate_rps": asked.request_rate or ANY_RATE_RPS},
    }
    if asked.concurrency is not None:
        stream["arrivals"] = {"kind": "closed_loop", "concurrency": asked.concurrency}
    if asked.prefix is not None:
        stream["prefix"] = {"groups": 1, "tokens": asked.prefix}
    return workload_from({"streams": {CLASS: stream}}, file="settings")


def _chosen(known: Devices, names: tuple[str, ...], prices: Prices) -> tuple[Device, ...]:
    if names:
        return tuple(known.device(name.strip()) for name in names)
    return tuple(device for device in known.devices if prices.has(device))


def _spot(asked: SpotAsked | None, folder: Path) -> SpotTerms | None:
    if asked is None:
        return None
    markets = read_spot_markets(_path(folder, asked.markets))
    return SpotTerms(
        name=asked.market,
        market=markets.market(asked.market),
        notice=markets.notice(asked.notice),
        epsilon=asked.epsilon,
        warm_up_s=asked.warm_up_s,
        least_on_demand=asked.least_on_demand,
    )


def _path(folder: Path, name: str | None) -> Path | None:
    return folder / name if name is not None else None
