"""From the figures of another tool to our document. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from loadtest.document import METRICS, AttainmentFigures, Document, MetricFigures, Source, SummaryFigures
from loadtest.exchange.tree import ratio
from loadtest.metrics import wilson
from loadtest.report import Verdict

FAILED = "failed (the source does not say how)"


def summary(
    *,
    window_s: float | None,
    completed: int | None,
    broken: Mapping[str, int | None],
    good: int | None,
    output_tokens_per_s: float | None,
    prompt_tokens: float | None,
    output_tokens: float | None,
    metrics: Mapping[str, MetricFigures | None],
) -> SummaryFigures:
    """`broken`: counts of what did not complete, by kind; None where not told. `good`: within the source's SLO."""
    told = all(count is not None for count in broken.values())
    due = completed + sum(count or 0 for count in broken.values()) if completed is not None and told else None
    all_completed = due is not None and due == completed
    outcomes = {"ok": completed, **broken}
    attainment = None
    if good is not None and due:
        attainment = AttainmentFigures(due, good, *wilson(good, due), good / due)
    return SummaryFigures(
        window_s=window_s,
        due=due,
        outcomes={kind: count for kind, count in outcomes.items() if count},
        attainment=attainment,
        goodput_rps=ratio(good, window_s),
        due_rps=ratio(due, window_s),
        completed_rps=ratio(completed, window_s),
        output_tokens_per_s=output_tokens_per_s,
        mean_prompt_tokens=prompt_tokens,
        mean_output_tokens=output_tokens,
        metrics={name: _with_all(found, all_completed) for name, found in metrics.items() if found is not None},
    )


def document(
    raw: bytes,
    number: int,
    source: Source,
    total: SummaryFigures,
    spec: Mapping[str, Any],
    started_at_s: float | None,
    also_missing: Iterable[str] = (),
) -> Document:
    """The run's id comes from the file's bytes, so importing it again gives the same."""
    run_id = f"{source.tool.split()[0].lower()}-{hashlib.sha256(raw).hexdigest()[:10]}" + (
        f"-{number}" if number else ""
    )
    return Document(
        run_id=run_id,
        verdict=Verdict.NO_SLO.value,
        certain=False,
        total=total,
        started_at_s=started_at_s,
        spec=spec,
        source=source,
        missing=(*_missing(total, started_at_s), *also_missing),
    )


def _with_all(found: MetricFigures, all_completed: bool) -> MetricFigures:
    """Percentiles over all requests due are known only where all of them completed."""
    if not all_completed:
        return found
    return MetricFigures(found.count, found.mean_ms, found.max_ms, found.completed_ms, dict(found.completed_ms))


def _missing(total: SummaryFigures, started_at_s: float | None) -> list[str]:
    names = ["client", "records", *([] if started_at_s is not None else ["started_at_s"])]
    for name in (
        "window_s", "due", "attainment", "goodput_rps", "due_rps", "completed_rps", "output_tokens_per_s",
        "mean_prompt_tokens", "mean_output_tokens",
    ):  # fmt: skip
        if getattr(total, name) is None:
            names.append(name)
    names += [f"metrics.{name}" for name in METRICS if name not in total.metrics]
    return names
