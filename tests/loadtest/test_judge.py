"""The planner's SLO document, judged class by class."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.console import show
from loadtest.goals import read_goals
from loadtest.judge import judge
from loadtest.metrics import summarise
from loadtest.report import Verdict, as_json, build
from loadtest.types import LoadTestError, Outcome, Promise, Record, Slo
from tests.loadtest.builders import record
from tests.loadtest.test_results import later, result
from tests.loadtest.test_traces import written

ROOT = Path(__file__).parents[2]


def records(ttft_ms: list[float], slo_class: str = "", failed: int = 0) -> list[Record]:
    some = [record([at, at + 50], number=n, slo_class=slo_class) for n, at in enumerate(ttft_ms)]
    return [*some, *(record([], Outcome.CUT, number=len(some) + n, slo_class=slo_class) for n in range(failed))]


def test_the_shipped_documents_become_limits() -> None:
    assert read_goals(ROOT / "configs/slo.chat.yaml") == {"chat": Slo(ttft_ms=500, tpot_ms=50, attainment=0.99)}
    goals = read_goals(ROOT / "configs/slo.reasoning.yaml")
    assert goals["reasoning"] == Slo(ttft_ms=2000, tpot_ms=40, attainment=0.95, promises=(Promise("ttft", 50.0, 500),))
    rag = read_goals(ROOT / "configs/slo.rag.yaml")["rag"]
    assert (rag.ttft_ms, rag.tpot_ms, rag.e2e_ms, rag.attainment) == (3000, 60, 20000, 0.9)
    assert Promise("ttft", 99.0, 3000) in rag.promises and len(rag.promises) == 4


def test_a_wrong_document_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="ttft_ms"):
        read_goals(written(tmp_path / "slo.yaml", "classes: {chat: {ttft: 5}}\n"))


@pytest.mark.parametrize(
    ("promise", "slow", "failed", "measured_ms", "kept", "certain"),
    [
        (Promise("ttft", 50.0, 200), 0, 0, 100, True, True),
        (Promise("ttft", 90.0, 200), 15, 0, 900, False, False),
        (Promise("ttft", 90.0, 200), 50, 0, 900, False, True),
        (Promise("ttft", 90.0, 200), 0, 20, math.inf, False, True),
        (Promise("ttft", 99.0, 200), 0, 0, 100, True, False),  # a hundred requests are too few for that
        (Promise("ttft", None, 200), 5, 9, 140, True, True),
        (Promise("ttft", None, 139), 5, 0, 140, False, False),
        (Promise("e2e", 50.0, 140), 0, 0, 150, False, True),
        (Promise("tpot", 50.0, 50), 0, 0, 50, True, True),
    ],
)
def test_each_promise(promise: Promise, slow: int, failed: int, measured_ms: float, kept: bool, certain: bool) -> None:
    some = records([900.0] * slow + [100.0] * (100 - slow), failed=failed)
    slo = Slo(promises=(promise,), attainment=0.5)
    attainment = summarise(some, slo, 1.0).attainment
    assert attainment is not None
    judged = judge(some, slo, attainment)
    (one,) = judged.promises
    assert (one.measured_ms, one.kept, one.certain) == (pytest.approx(measured_ms), kept, certain)
    assert judged.met is kept


def test_nothing_seen_is_nothing_kept() -> None:
    slo = Slo(promises=(Promise("ttft", 50.0, 200), Promise("e2e", None, 9)))
    attainment = summarise([], slo, 1.0).attainment
    assert attainment is not None
    judged = judge([], slo, attainment)
    assert not judged.met and not any(one.kept for one in judged.promises)


FAST, SLOW = Slo(ttft_ms=200, attainment=0.9), Slo(ttft_ms=2000, attainment=0.9, promises=(Promise("ttft", 50.0, 800),))


@pytest.mark.parametrize(
    ("chat_ms", "batch_ms", "verdict"),
    [(100, 700, Verdict.MET), (300, 700, Verdict.MISSED), (100, 900, Verdict.MISSED)],
)
def test_every_class_is_held_to_its_own_slo(chat_ms: float, batch_ms: float, verdict: Verdict) -> None:
    some = [*records([chat_ms] * 60, "chat"), *records([batch_ms] * 40, "batch")]
    made = replace(result([record([100.0])], Slo()), records=tuple(later(one) for one in some))
    made = replace(made, spec=replace(made.spec, class_slos={"chat": FAST, "batch": SLOW}))
    report = build(made)
    assert report.verdict is verdict and report.judged.keys() == {"chat", "batch"}
    assert report.judged["chat"].met == (chat_ms < 200) and report.judged["batch"].met == (batch_ms < 800)
    assert report.total.attainment is not None
    assert report.total.attainment.met == (60 if chat_ms < 200 else 0) + 40
    assert report.classes["chat"].goodput_rps is not None
    tree = as_json(report, made)
    assert tree["judged"]["batch"]["promises"][0]["measured_ms"] == batch_ms
    assert tree["spec"]["class_slos"]["chat"]["ttft_ms"] == 200
    console = Console(width=120)
    with console.capture() as told:
        show(report, console)
    assert f"class batch: p50 of ttft is {batch_ms:.2f} ms, promised 800" in told.get()
    assert "class chat: met" in told.get() or chat_ms > 200
