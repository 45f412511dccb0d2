"""`vllm bench serve --save-result`: read, and written for whoever has dashboards for it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loadtest.document import Document, MetricFigures, Source
from loadtest.exchange.shaping import FAILED, document, summary
from loadtest.exchange.tree import at, number, ratio, text, whole
from loadtest.metrics import in_window, quantile
from loadtest.types import Record

TOOL = "vllm bench serve"
NOTES = (
    "its TTFT begins when the request is sent and ends at the first chunk with choices, be it empty: here ttft_net",
    "its ITL is the time between chunks, pooled: here gap",
    "its E2EL begins when the request is sent: here e2e_net; with the time in the client's queue it is e2e",
    "its percentiles leave failed requests out",
)
# Their names in ours.
NAMES = {"ttft": "ttft_net", "tpot": "tpot", "itl": "gap", "e2el": "e2e_net", "e2el_including_client_queue": "e2e"}
WRITTEN = {"ttft_net": "ttft", "tpot": "tpot", "gap": "itl", "e2e_net": "e2el"}
PERCENTILES = (50, 90, 95, 99)

_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)_(\w+)_ms")


def is_vllm_bench(tree: Any) -> bool:
    return number(tree, "request_throughput") is not None and number(tree, "total_input_tokens") is not None


def read_vllm_bench(tree: Mapping[str, Any], raw: bytes, place: int) -> Document:
    """`place`: of this result in a file that holds several."""
    window_s, completed = number(tree, "duration"), whole(tree, "completed")
    failed, asked = whole(tree, "failed"), whole(tree, "num_prompts")
    if failed is None and asked is not None and completed is not None:
        failed = asked - completed
    goodput = number(tree, "request_goodput")
    good = round(goodput * window_s) if goodput is not None and window_s is not None else None
    total = summary(
        window_s=window_s,
        completed=completed,
        broken={FAILED: failed},
        good=good,
        output_tokens_per_s=number(tree, "output_throughput"),
        prompt_tokens=ratio(number(tree, "total_input_tokens"), completed),
        output_tokens=ratio(number(tree, "total_output_tokens"), completed),
        metrics={ours: _metric(tree, theirs, completed) for theirs, ours in NAMES.items()},
    )
    spec = {
        "models": [model] if (model := text(tree, "model_id")) else [],
        "limits": {"concurrency": whole(tree, "max_concurrency")},
        # Infinity is written as the word.
        "request_rate": at(tree, "request_rate"),
        "burstiness": number(tree, "burstiness"),
        "date_without_zone": text(tree, "date"),
    }
    source = Source(TOOL, None, NOTES)
    return document(raw, place, source, total, spec, None, () if goodput is not None else ("slo",))


def write_vllm_bench(doc: Document, records: Sequence[Record], *, detailed: bool = False) -> dict[str, Any]:
    """The figures are made of the records, and of the document where there are none; what neither says is left out.

    `records`: all of the run, with instants from its start on. Those of the warm-up are no part of any figure: the
    document has left them out as well.
    """
    counted = in_window(records, 0, doc.warmup_s)
    found = _of_records(counted) if records else _of_document(doc)
    total, models = doc.total, doc.spec.get("models") or []
    completed = total.outcomes.get("ok", 0 if total.due is not None else None)
    tree: dict[str, Any] = {
        "backend": "openai-chat" if "chat" in str(doc.spec.get("endpoint", "")) else "openai",
        "model_id": ",".join(models) or None,
        "num_prompts": total.due,
        "request_rate": _request_rate(doc),
        "max_concurrency": whole(doc.spec, "limits", "concurrency"),
        "duration": total.window_s,
        "completed": completed,
        "failed": total.due - completed if total.due is not None and completed is not None else None,
        "request_throughput": total.completed_rps,
        "request_goodput": total.goodput_rps,
        "output_throughput": total.output_tokens_per_s,
        **found,
    }
    tokens = [number(tree, key) for key in ("total_input_tokens", "total_output_tokens")]
    known = [count for count in tokens if count is not None]
    if total.window_s and len(known) == len(tokens):
        tree["total_token_throughput"] = sum(known) / total.window_s
    if detailed:
        tree |= _details(counted)
    # These two are null in their files too; every other key that is not known is left out.
    return {
        key: value for key, value in tree.items() if value is not None or key in ("max_concurrency", "request_goodput")
    }


def _metric(tree: Mapping[str, Any], theirs: str, completed: int | None) -> MetricFigures | None:
    if number(tree, f"mean_{theirs}_ms") is None or not completed:
        return None  # with nothing completed, all its figures are 0
    shares: dict[str, float | None] = {"p50": number(tree, f"median_{theirs}_ms")}
    for key in tree:
        found = _PERCENTILE.fullmatch(key)
        if found and found[2] == theirs:
            shares[f"p{float(found[1]):g}"] = number(tree, key)
    return MetricFigures(
        count=completed if theirs != "itl" else None,
        mean_ms=number(tree, f"mean_{theirs}_ms"),
        completed_ms={share: value for share, value in shares.items() if value is not None},
    )


def _request_rate(doc: Document) -> float | str | None:
    """Theirs is "inf" where a request waits for nothing but a free slot, whatever rate that came to."""
    told = doc.spec.get("request_rate")
    if told == "inf" or number(told) is not None:
        return told
    # Another tool that had a rate would have told it.
    closed = doc.spec.get("closed_loop", whole(doc.spec, "limits", "concurrency") is not None)
    return "inf" if closed else doc.total.due_rps


def _of_records(records: Sequence[Record]) -> dict[str, Any]:
    ok = [record for record in records if record.ok]
    prompts = [record.prompt_tokens for record in ok]
    values_ns: dict[str, list[float]] = {
        "ttft": [record.ttft_net_ns for record in ok if record.ttft_net_ns is not None],
        "tpot": [record.tpot_ns for record in ok if record.tpot_ns is not None],
        "itl": np.concatenate([record.gaps_ns for record in ok]).tolist() if ok else [],
        "e2el": [record.end_ns - record.send_ns for record in ok],
    }
    tree: dict[str, Any] = {
        "total_output_tokens": sum(record.output_tokens for record in ok),
        "max_concurrent_requests": _most_at_once(records),
    }
    if all(prompt is not None for prompt in prompts):
        tree["total_input_tokens"] = sum(prompt for prompt in prompts if prompt is not None)
    for name, values in values_ns.items():
        if values:
            tree |= _statistics(name, np.sort(np.array(values) / 1e6))
    return tree


def _statistics(name: str, ordered_ms: np.ndarray) -> dict[str, float]:
    return {
        f"mean_{name}_ms": float(ordered_ms.mean()),
        f"median_{name}_ms": quantile(ordered_ms, 0.5),
        f"std_{name}_ms": float(ordered_ms.std()),
        **{f"p{share}_{name}_ms": quantile(ordered_ms, share / 100) for share in PERCENTILES},
    }


def _of_document(doc: Document) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    completed = doc.total.outcomes.get("ok")
    for key, mean in (
        ("total_input_tokens", doc.total.mean_prompt_tokens),
        ("total_output_tokens", doc.total.mean_output_tokens),
    ):
        if completed is not None and mean is not None:
            tree[key] = round(completed * mean)
    for ours, theirs in WRITTEN.items():
        found = doc.total.metrics.get(ours)
        if found is None:
            continue
        tree[f"mean_{theirs}_ms"] = found.mean_ms
        tree[f"median_{theirs}_ms"] = found.completed_ms.get("p50")
        tree |= {f"{share}_{theirs}_ms": value for share, value in found.completed_ms.items()}
    return tree


def _details(records: Sequence[Record]) -> dict[str, Any]:
    """Lists by request, in seconds, as `--save-detailed` writes them; a failed request has 0 and no gaps there."""
    return {
        "input_lens": [record.prompt_tokens or 0 for record in records],
        "output_lens": [record.output_tokens if record.ok else 0 for record in records],
        "ttfts": [(record.ttft_net_ns or 0) / 1e9 if record.ok else 0.0 for record in records],
        "itls": [(record.gaps_ns / 1e9).tolist() if record.ok else [] for record in records],
        "start_times": [record.send_ns / 1e9 for record in records],
        "errors": ["" if record.ok else f"{record.outcome.value}: {record.detail}" for record in records],
    }


def _most_at_once(records: Sequence[Record]) -> int:
    edges = sorted(
        [(record.send_ns, 1) for record in records if record.send_ns]
        + [(record.end_ns, -1) for record in records if record.send_ns]
    )
    return int(np.cumsum([step for _, step in edges]).max()) if edges else 0
