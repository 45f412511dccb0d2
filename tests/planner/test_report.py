"""What people and programs are told of an answer, from answers made by hand."""

from __future__ import annotations

import re
import struct
from io import StringIO
from pathlib import PurePath
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.table import Table

from planner import Answer, Candidate, Change, Infeasible, Nearest, PlannerError, Point, Skipped, plan_from
from planner.plan import Cost, NoticeEffect, SpotPlan
from planner.report.answers import (
    Aim,
    answer_table,
    answer_tree,
    candidates,
    chosen,
    class_table,
    infeasible_lines,
    plan_lines,
    reason_lines,
)
from planner.report.pareto import pareto_file
from planner.report.scene import ticks
from tests.planner.plans import plan, pool

TITLE = "a/model: plans for 4 requests/s"


def candidate(name: str, usd_per_hour: float, replicas: int, probability: float) -> Candidate:
    cost = Cost(
        usd_per_hour=usd_per_hour,
        expected_usd_per_hour=usd_per_hour,
        low_usd_per_hour=usd_per_hour,
        high_usd_per_hour=usd_per_hour * 2,
    )
    made = plan(pool(replicas=replicas))
    told = made.prediction.model_copy(update={"probability": probability})
    return Candidate(
        name=name, plan=made.model_copy(update={"cost": cost, "prediction": told, "why": ("TPOT of chat binds",)})
    )


CHEAP, MIDDLE, DEAR = candidate("a", 4.0, 4, 0.7), candidate("b", 5.0, 3, 0.8), candidate("<c>", 9.0, 5, 0.95)
ANSWER = Answer(
    cheapest=CHEAP,
    fewest_gpus=MIDDLE,
    safest=DEAR,
    safe_probability=0.9,
    pareto=(CHEAP, MIDDLE, DEAR, candidate("d", 6.0, 4, 0.85)),
    points=(Point(name="p", device="l40s", disaggregated=True, usd_per_hour=7, gpus=6, rate_rps=5),),
    changes=tuple(Change(what=f"change {at}", usd_per_hour_delta=-1.0, gpus_delta=-1) for at in range(6)),
    considered=10_000,
    fitting=8_000,
    verified=8,
    skipped=tuple(Skipped(what=f"device {at}", reason="no price") for at in range(5)),
    warnings=("old price",),
)


def shown(table: Table) -> str:
    text = StringIO()
    Console(file=text, width=220).print(table)
    return text.getvalue()


def test_each_plan_stands_once_with_what_it_is_best_at() -> None:
    assert [(one.name, aims) for one, aims in candidates(ANSWER)] == [
        ("a", (Aim.CHEAPEST,)),
        ("b", (Aim.FEWEST,)),
        ("d", ()),
        ("<c>", (Aim.SAFEST,)),
    ]
    assert [one.name for one, _ in candidates(ANSWER, most=1)] == ["a", "b", "<c>"]
    assert [chosen(ANSWER, aim).name for aim in Aim] == ["a", "b", "<c>"]
    table = shown(answer_table(ANSWER))
    assert "4 mixed x h100_sxm TP2 fp8" in table and "4.00–8.00" in table and "95%" in table


def test_the_details_name_flags_limits_and_doubts() -> None:
    told = "\n".join([*plan_lines(CHEAP.plan), *reason_lines(ANSWER, CHEAP.plan, explain=False)])
    for word in (
        "--tensor-parallel-size 2", "what limits a replica: TPOT of chat", "P(SLO met) 70%", "why: TPOT of chat binds",
        "change 0: -1.00 USD/h, -1 GPUs", "10,000 configurations, 8,000 fit into memory, 8 simulated",
        "warning: old price", "2 more (--explain names them)",
    ):  # fmt: skip
        assert word in told
    assert "change 5" not in told and "device 4" not in told
    all_told = "\n".join(reason_lines(ANSWER, CHEAP.plan, explain=True))
    assert "change 5" in all_told and "device 4: no price" in all_told and "more" not in all_told
    assert "99.50% (99.00%–100.00%)" in shown(class_table(CHEAP.plan))


def test_spot_and_its_notices_are_told() -> None:
    notice = NoticeEffect(
        lead_s=30, lost=1, moved_share=0.5, replayed_tokens=1234, spare_replicas=1, misses=17, usd_per_hour=8
    )
    terms = SpotPlan(
        market="here", availability=0.9, lead_s=30, missed_notices=0.05, probability=0.999, spare_replicas=1,
        warm_up_s=90, notices=(notice,),
    )  # fmt: skip
    told = "\n".join(plan_lines(plan(pool(spot=1).model_copy(update={"spot_terms": terms}))))
    assert "(1 on spot)" in told and "up 90.0% of the time" in told
    assert "notice 30 s, 1 lost: 50% of the KV moves, 1,234 tokens are replayed" in told


def test_programs_get_the_plan_that_was_aimed_at_and_can_read_it_back() -> None:
    tree = answer_tree(ANSWER, Aim.SAFEST)
    assert tree["feasible"] is True and plan_from(tree["plan"]) == DEAR.plan
    assert tree["considered"] == 10_000


def test_what_cannot_be_is_told_with_the_ways_out() -> None:
    answer = Infeasible(
        constraint="ttft",
        problem="TTFT P99 of chat cannot be below 120 ms",
        nearest=(Nearest(kind="slo", text="ttft_ms of chat: 180 ms"), Nearest(kind="gpus", text="12 GPUs", gpus=12)),
        considered=100,
        fitting=50,
    )
    told = "\n".join(infeasible_lines(answer, explain=False))
    assert "no plan holds the SLO: TTFT P99 of chat cannot be below 120 ms (what binds: ttft)" in told
    assert "nearest slo: ttft_ms of chat: 180 ms" in told and "nearest gpus: 12 GPUs" in told
    tree = answer_tree(answer, Aim.CHEAPEST)
    assert tree["feasible"] is False and tree["constraint"] == "ttft" and "plan" not in tree


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    page = pareto_file(ANSWER, PurePath("plans.html"), title=TITLE).decode()
    assert page.startswith("<!doctype html>") and "&lt;c&gt;" in page and "<c>" not in page
    assert not re.search(r"(?:src|href)=|<script|@import|url\(", page)
    assert "--tensor-parallel-size 2" in page and "change 0: -1.00 USD/h" in page


def test_the_drawing_has_a_dot_for_each_plan_and_point_within_its_frame() -> None:
    root = ElementTree.fromstring(pareto_file(ANSWER, PurePath("plans.svg"), title=TITLE))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    dots = root.findall("{http://www.w3.org/2000/svg}circle")
    titles = [dot.findtext("{http://www.w3.org/2000/svg}title") or "" for dot in dots]
    assert sum(title.startswith("p: 7.00 USD/h, 6 GPUs") for title in titles) == 1
    for name in "abd":
        assert sum(title.startswith(f"{name}:") for title in titles) == 2  # one in each panel
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < width and 0 < float(dot.attrib["cy"]) < height


def test_the_picture_is_a_png_of_the_drawings_size() -> None:
    pytest.importorskip("PIL")
    picture = pareto_file(ANSWER, PurePath("plans.PNG"), title=TITLE)
    root = ElementTree.fromstring(pareto_file(ANSWER, PurePath("plans.svg"), title=TITLE))
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    size = struct.unpack(">II", picture[16:24])
    assert size == tuple(2 * float(root.attrib[side]) for side in ("width", "height"))


def test_another_ending_is_refused() -> None:
    with pytest.raises(PlannerError) as caught:
        pareto_file(ANSWER, PurePath("plans.pdf"), title=TITLE)
    assert ".png, .svg or .html" in caught.value.remedy


@pytest.mark.parametrize(("high", "expected"), [(1.0, 6), (0.03, 4), (97.0, 5), (12_345.0, 3)])
def test_ticks_are_round_and_within(high: float, expected: int) -> None:
    found = list(ticks(0.0, high))
    assert len(found) == expected and found[0] == 0 and found[-1] <= high * (1 + 1e-9)
    assert f"{found[1]:e}"[:2] in ("1.", "2.", "5.")
