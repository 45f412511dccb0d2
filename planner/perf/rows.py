"""Tables of published measurements: which question a row asks, in the words that benchmark tables use.

A row is a mapping from column to text, with the columns of `READ`. Columns that are not there count as empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from planner.devices import Devices
from planner.library import shape_of_model
from planner.perf.question import LoadKind, Question, Split
from planner.perf.work import Layout, storage
from planner.quantisations import Quantisation
from planner.types import PlannerError

READ = (
    "model", "gpu", "n_gpu", "tp", "pp", "dp", "ep", "pd_split", "quant", "engine", "isl", "osl", "load_kind", "load",
)  # fmt: skip

KINDS: Mapping[str, LoadKind] = {
    "concurrency": "concurrency",
    "static_batch": "batch",
    "batch": "batch",
    "offline_batch": "batch",
    "offline_max": "offline",
    "max": "offline",
    "request_rate": "request_rate",
    "rate": "request_rate",
    "constant": "request_rate",
    "poisson": "request_rate",
}
# InferenceMAX/X draws both lengths evenly from 0.8 to 1.0 of what the table says, in these three shapes.
DRAWN_LENGTHS = frozenset({(1024, 1024), (1024, 8192), (8192, 1024)})
DRAWN_MEAN, DRAWN_SPREAD = 0.9, 0.2
OLDEST_ENGINES = "2023"  # before vLLM had CUDA graphs
LARGEST = 1e8  # tokens, clients or requests/s; more is a slip of the pen
PACKED_KV = ("fp8", "fp4")


def question_of_row(row: Mapping[str, str], devices: Devices) -> Question:
    """The question of one row. Raises PlannerError that names the column at fault."""
    row = {column: value or "" for column, value in row.items()}  # a short line of a table leaves None
    shape = shape_of_model(_text(row, "model"))
    device = devices.device(_text(row, "gpu"))
    stored = storage(shape, row.get("quant", "").strip().lower())
    kind = _kind(row)
    isl, osl = _number(row, "isl"), _number(row, "osl")
    engine = row.get("engine", "").strip() or "vllm"
    drawn = kind == "concurrency" and (isl, osl) in DRAWN_LENGTHS
    split = _split(row)
    question = Question(
        shape=shape,
        device=device,
        layout=split.decode if split else _layout(row),
        split=split,
        stored=stored,
        kv_dtype=kv_dtype(stored, device.multiplies(stored.compute_dtype)),
        isl=isl * (DRAWN_MEAN if drawn else 1.0),
        osl=osl * (DRAWN_MEAN if drawn else 1.0),
        spread=DRAWN_SPREAD if drawn else 0.0,
        kind=kind,
        load=float("inf") if kind == "offline" else _number(row, "load"),
        engine=engine_family(engine),
        eager=OLDEST_ENGINES in engine,
    )
    return question if split else _replicated(question, row)


def engine_family(engine: str) -> str:
    """`vllm`, `sglang` or `trtllm`, whatever the version."""
    word = engine.lower()
    if "trt" in word:
        return "trtllm"
    return "sglang" if "sglang" in word else "vllm"


def kv_dtype(stored: Quantisation, native: bool) -> str:
    """Those who publish packed checkpoints keep the cache in fp8 too, where the device multiplies in the format."""
    return "fp8" if stored.compute_dtype in PACKED_KV and native else "auto"


def _kind(row: Mapping[str, str]) -> LoadKind:
    word = _text(row, "load_kind")
    kind = KINDS.get(word, "request_rate" if word.startswith("poisson") else None)
    if kind is None:
        raise _error("load_kind", word, "not a load we can predict", f"use one of: {', '.join(KINDS)}")
    return kind


def _layout(row: Mapping[str, str]) -> Layout:
    tp, pp, dp, ep = (_count(row, column) for column in ("tp", "pp", "dp", "ep"))
    if _attention_ranks(row):
        return Layout(tp=1, pp=pp, dp=dp, ep=dp)
    return Layout(tp=tp, pp=pp, dp=dp, ep=ep if ep in (1, tp * dp) else 1)


def _replicated(question: Question, row: Mapping[str, str]) -> Question:
    """More devices than the layout takes are replicas; a table without tp means the narrowest layout that fits."""
    devices = _count(row, "n_gpu")
    if not (row.get("tp") or "").strip():
        question = _narrowest(question, devices)
    elif _attention_ranks(row):
        return question
    return replace(question, replicas=max(1, devices // question.layout.devices))


def _narrowest(question: Question, devices: int) -> Question:
    for doublings in range(devices.bit_length()):
        found = replace(question, layout=replace(question.layout, tp=2**doublings))
        try:
            found.engine_limits(found.work())
        except PlannerError:
            continue
        return found
    return replace(question, layout=replace(question.layout, tp=devices))


def _attention_ranks(row: Mapping[str, str]) -> bool:
    """InferenceMAX/X says tp = dp = devices when attention is data-parallel and all of them share the experts."""
    tp, dp, ep = (_count(row, column) for column in ("tp", "dp", "ep"))
    return dp > 1 and dp == tp and ep == tp * dp


def _split(row: Mapping[str, str]) -> Split | None:
    word = row.get("pd_split", "").strip()
    if not word:
        return None
    replicas = re.fullmatch(r"(\d+)P(\d+)D", word)
    if replicas is None:
        raise _error("pd_split", word, "not a split such as 1P3D", "write replicas of prefill and decode")
    prefill, decode = _pool_layout(row, "P"), _pool_layout(row, "D")
    return Split(prefill_replicas=int(replicas[1]), decode_replicas=int(replicas[2]), prefill=prefill, decode=decode)


def _pool_layout(row: Mapping[str, str], pool: str) -> Layout:
    """Pools of their own layout are written `P4/D16`; `P0` or nothing means 1. Attention over dp ranks has tp = 1."""
    tp, pp, dp, ep = (_pooled(row, column, pool) for column in ("tp", "pp", "dp", "ep"))
    if dp > 1 and dp == tp:
        return Layout(tp=1, pp=pp, dp=dp, ep=dp)
    return Layout(tp=tp, pp=pp, dp=dp, ep=ep if ep == tp * dp else 1)


def _pooled(row: Mapping[str, str], column: str, pool: str) -> int:
    word = row.get(column, "").strip()
    both = re.fullmatch(r"P(\d+)/D(\d+)", word)
    if both is None:
        return _count(row, column)
    return max(1, int(both[1] if pool == "P" else both[2]))


def _text(row: Mapping[str, str], column: str) -> str:
    value = (row.get(column) or "").strip()
    if not value:
        raise _error(column, None, "a value is needed", f"fill the column {column}")
    return value


def _number(row: Mapping[str, str], column: str) -> float:
    word = _text(row, column)
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 < value <= LARGEST:
        raise _error(
            column, word, f"a number above zero, and below {LARGEST:g}, is needed", f"correct the column {column}"
        )
    return value


def _count(row: Mapping[str, str], column: str) -> int:
    word = (row.get(column) or "").strip()
    if word in ("", "0"):
        return 1
    try:
        value = float(word)
    except ValueError:
        value = 0.5
    if not value.is_integer() or not 1 <= value <= 1_000_000:
        raise _error(column, word, "a whole number is needed", f"correct the column {column}")
    return int(value)


def _error(column: str, value: object, problem: str, remedy: str) -> PlannerError:
    return PlannerError("rows", column, value, problem, remedy)
