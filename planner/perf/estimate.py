"""The front door of the performance model: one estimate, or a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from planner.devices import Device, Devices
from planner.files import read_devices
from planner.library import shape_of_model
from planner.models import ModelShape
from planner.perf.calibration import Calibration, Rung, Sigma
from planner.perf.prepared import Prepared, prepare
from planner.perf.question import LoadKind, Question
from planner.perf.roofline import Batch, step
from planner.perf.rows import engine_family, kv_dtype, question_of_row
from planner.perf.serving import Served, context_tokens
from planner.perf.shipped import shipped_calibration
from planner.perf.spread import Spread, tpot_spread, ttft_spread
from planner.perf.work import Layout, storage
from planner.types import PlannerError

WRITTEN = (
    "ttft_mean_ms", "ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms",
    "tpot_mean_ms", "tpot_p50_ms", "tpot_p90_ms", "tpot_p99_ms", "out_tok_s", "rung", "error",
)  # fmt: skip
SATURATED_BUSY = 0.95


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one deployment does under one load, all replicas together, and how sure that is."""

    ttft: Percentiles
    tpot: Percentiles
    out_tok_s: float
    request_rate: float
    running: float  # sequences decoding, per data-parallel rank
    cap: float  # the most of them that memory and max_num_seqs allow
    step_ms: Mapping[str, float]  # one decode step by cause
    limit: str  # what binds, in words; where requests come faster than they can be served, TTFT is infinite
    rung: Rung
    sigma: Sigma


def estimate(
    model: str | ModelShape,
    system: str | Device,
    *,
    isl: float,
    osl: float,
    concurrency: float | None = None,
    request_rate: float | None = None,
    batch: float | None = None,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    ep: int = 1,
    replicas: int = 1,
    quant: str | None = None,
    kv_cache_dtype: str | None = None,
    engine: str = "vllm",
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    kv_cache_bytes: int | None = None,
    calibration: Calibration | None = None,
    devices: Devices | None = None,
) -> Estimate:
    """One estimate. Lengths in tokens; exactly one of `concurrency`, `request_rate` (per second) and `batch`.

    `kv_cache_dtype` None: fp8 where the weights are packed and the device multiplies in their format, else the
    model's own. `kv_cache_bytes` is of one device; None: what weights and activations leave. Raises PlannerError that
    names the value at fault.
    """
    shape = shape_of_model(model) if isinstance(model, str) else model
    device = (devices or read_devices()).device(system) if isinstance(system, str) else system
    kind, load = _load(concurrency, request_rate, batch)
    for name, value in (("isl", isl), ("osl", osl), (kind, load), ("replicas", replicas)):
        if not (isfinite(value) and value > 0):
            raise PlannerError("settings", name, value, "must be a number above zero", f"correct {name}")
    stored = storage(shape, quant)
    question = Question(
        shape=shape,
        device=device,
        layout=Layout(tp=tp, pp=pp, dp=dp, ep=ep),
        stored=stored,
        kv_dtype=kv_cache_dtype or kv_dtype(stored, device.multiplies(stored.compute_dtype)),
        isl=isl,
        osl=osl,
        kind=kind,
        load=load,
        engine=engine_family(engine),
        replicas=replicas,
        budget_tokens=max_num_batched_tokens,
        max_sequences=max_num_seqs,
        kv_cache_bytes=kv_cache_bytes,
    )
    return estimates(prepare([question]), calibration or shipped_calibration())[0]


def estimates(prepared: Prepared, calibration: Calibration) -> list[Estimate]:
    """An Estimate for each prepared question."""
    co = calibration.coefficients(prepared.questions)
    served = prepared.served(co)
    ttft, tpot = ttft_spread(served, prepared.load), tpot_spread(served, prepared.load)
    each = np.maximum(1.0, served.running / prepared.work.pp)
    none = np.zeros_like(each)
    parts = step(
        prepared.work,
        prepared.chip,
        co,
        Batch(
            decoding=each, context=context_tokens(prepared.load), prefill=none, pairs=none, prompts=none, others=each
        ),
    )
    causes = ("weights_s", "experts_s", "attention_s", "state_s", "links_s", "overhead_s")
    answers = []
    for row, question in enumerate(prepared.questions):
        rung = calibration.rung(question)
        answers.append(
            Estimate(
                ttft=_percentiles(ttft, row),
                tpot=_percentiles(tpot, row),
                out_tok_s=float(served.rate_rps[row] * question.replicas * question.osl),
                request_rate=float(served.rate_rps[row] * question.replicas),
                running=float(served.running[row]),
                cap=float(served.cap[row]),
                step_ms={cause.removesuffix("_s"): 1e3 * float(getattr(parts, cause)[row]) for cause in causes},
                limit=_limit(served, prepared, row),
                rung=rung,
                sigma=calibration.sigma(question),
            )
        )
    return answers


def estimate_rows(
    rows: Iterable[Mapping[str, str]], *, calibration: Calibration | None = None, devices: Devices | None = None
) -> list[dict[str, str]]:
    """The columns of `WRITTEN` for each row of a table of measurements (see `planner.perf.rows`), in order.

    A row that cannot be predicted has the reason under `error` and nothing else; no row stops the others.
    """
    known = devices or read_devices()
    answers: list[dict[str, str]] = []
    good: list[Question] = []
    places: list[int] = []
    for row in rows:
        answers.append(dict.fromkeys(WRITTEN, ""))
        try:
            question = question_of_row(row, known)
            prepare([question])
        except PlannerError as error:
            answers[-1]["error"] = f"{error}; {error.remedy}"
            continue
        places.append(len(answers) - 1)
        good.append(question)
    found = estimates(prepare(good), calibration or shipped_calibration()) if good else []
    for place, answer in zip(places, found, strict=True):
        answers[place].update(_written(answer))
    return answers


def _written(answer: Estimate) -> dict[str, str]:
    if not isfinite(answer.ttft.mean_ms):
        return {"error": answer.limit}
    columns = {"out_tok_s": f"{answer.out_tok_s:.2f}", "rung": answer.rung}
    for name, values in (("ttft", answer.ttft), ("tpot", answer.tpot)):
        for which in ("mean", "p50", "p90", "p99"):
            columns[f"{name}_{which}_ms"] = f"{getattr(values, f'{which}_ms'):.3f}"
    return columns


def _percentiles(spread: Spread, row: int) -> Percentiles:
    mean, p50, p90, p99 = (1e3 * float(column[row]) for column in (spread.mean, spread.p50, spread.p90, spread.p99))
    return Percentiles(mean_ms=mean, p50_ms=p50, p90_ms=p90, p99_ms=p99)


def _limit(served: Served, prepared: Prepared, row: int) -> str:
    if not isfinite(served.queue_s[row]):
        most = served.rate_rps[row] * prepared.questions[row].replicas
        return f"overloaded: at most {most:.3g} requests/s can be served"
    if served.queue_s[row] > 0:
        memory = prepared.engine.max_sequences[row] > served.cap[row]
        return (
            f"requests queue: {'the KV cache holds' if memory else 'max_num_seqs allows'} {served.cap[row]:.0f} of them"
        )
    if served.busy[row] > SATURATED_BUSY:
        return "saturated: prompts come faster than they can be prefilled"
    return "none"


def _load(concurrency: float | None, request_rate: float | None, batch: float | None) -> tuple[LoadKind, float]:
    given: list[tuple[LoadKind, float]] = []
    if concurrency is not None:
        given.append(("concurrency", concurrency))
    if request_rate is not None:
        given.append(("request_rate", request_rate))
    if batch is not None:
        given.append(("batch", batch))
    if len(given) != 1:
        named = " and ".join(name for name, _ in given) or None
        remedy = "give one of concurrency, request_rate and batch"
        raise PlannerError("settings", "load", named, "exactly one load is needed", remedy)
    return given[0]
