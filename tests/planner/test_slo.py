"""The SLO document: what its words mean, and every contradiction refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import PlannerError, SloClass, Target, slo_from


def slo_class(**keys: object) -> SloClass:
    return slo_from({"classes": {"chat": keys}}, file="my.yaml").of("chat")


def refused(**keys: object) -> PlannerError:
    with pytest.raises(PlannerError) as error:
        slo_class(**keys)
    assert error.value.file == "my.yaml"
    assert error.value.remedy
    return error.value


def test_a_number_is_a_limit_for_each_request() -> None:
    chat = slo_class(ttft_ms=500, tpot_ms=50, attainment=0.95)
    assert chat.request_limits_s == {"ttft": 0.5, "tpot": 0.05}
    assert chat.required_attainment == 0.95
    assert chat.targets == (Target("ttft", 95.0, 0.5), Target("tpot", 95.0, 0.05))


def test_percentiles_are_over_all_requests() -> None:
    rag = slo_class(ttft_ms={"p99": 3000, "p50": 800}, e2e_ms={"p90": 20000, "mean": 9000})
    assert rag.targets == (
        Target("ttft", 50.0, 0.8),
        Target("ttft", 99.0, 3.0),
        Target("e2e", None, 9.0),
        Target("e2e", 90.0, 20.0),
    )
    assert rag.request_limits_s == {"ttft": 3.0, "e2e": 20.0}
    assert rag.required_attainment == 0.9


def test_a_mean_alone_holds_no_single_request() -> None:
    assert slo_class(tpot_ms={"mean": 40}).request_limits_s == {}


def test_a_tenth_of_a_percent() -> None:
    assert slo_class(ttft_ms={"p99.9": 900}).targets == (Target("ttft", 99.9, 0.9),)


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"ttft": 500}, "classes.chat.ttft", "ttft_ms"),
        ({"ttft_ms": 500, "atainment": 0.9}, "classes.chat.atainment", "attainment"),
        ({"ttft_ms": -5}, "classes.chat.ttft_ms", "greater than 0"),
        ({"ttft_ms": 0}, "classes.chat.ttft_ms", "greater than 0"),
        ({"ttft_ms": "500ms"}, "classes.chat.ttft_ms", "number"),
        ({"ttft_ms": True}, "classes.chat.ttft_ms", "number"),
        ({"ttft_ms": float("inf")}, "classes.chat.ttft_ms", "finite"),
        ({"ttft_ms": {"p50": float("nan")}}, "classes.chat.ttft_ms.p50", "above 0"),
        ({"ttft_ms": {"p50": -1}}, "classes.chat.ttft_ms.p50", "above 0"),
        ({"ttft_ms": {"p100": 10}}, "classes.chat.ttft_ms.p100", "p99"),
        ({"ttft_ms": {"p0": 10}}, "classes.chat.ttft_ms.p0", "statistic"),
        ({"ttft_ms": {"median": 10}}, "classes.chat.ttft_ms.median", "mean"),
        ({"ttft_ms": {}}, "classes.chat.ttft_ms", "no promise"),
        ({"ttft_ms": {"p50": 900, "p99": 800}}, "classes.chat.ttft_ms.p50", "above p99"),
        ({"ttft_ms": 500, "rate_rps": 0}, "classes.chat.rate_rps", "greater than 0"),
        ({"ttft_ms": 500, "rate_rps": 1, "concurrency": 2}, "classes.chat.concurrency", "rate_rps"),
        ({"ttft_ms": 500, "concurrency": 1.5}, "classes.chat.concurrency", "integer"),
        ({"ttft_ms": 500, "attainment": 1.0}, "classes.chat.attainment", "less than 1"),
        ({"ttft_ms": 500, "attainment": 99}, "classes.chat.attainment", "less than 1"),
        ({"ttft_ms": {"p90": 500}, "attainment": 0.99}, "classes.chat.attainment", "p90"),
        ({"ttft_ms": 500, "e2e_ms": 400}, "classes.chat.e2e_ms", "ttft_ms"),
        ({"tpot_ms": {"p99": 50}, "e2e_ms": {"p99": 50}}, "classes.chat.e2e_ms", "tpot_ms"),
        ({"rate_rps": 5}, "classes.chat", "ttft_ms"),
        ({"ttft_ms": 500, "priority": "high"}, "classes.chat.priority", "integer"),
    ],
)
def test_odd_promises_are_refused(keys: dict[str, Any], key: str, words: str) -> None:
    error = refused(**keys)
    assert error.key == key
    assert words in f"{error.problem} {error.remedy}"


@pytest.mark.parametrize("data", [{}, {"classes": {}}, {"classes": []}, {"classes": {"chat": None}}, [], None, "x"])
def test_what_is_no_slo_is_refused(data: object) -> None:
    with pytest.raises(PlannerError):
        slo_from(data)


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlannerError) as error:
        slo_from({"classes": {"chat": {"ttft_ms": 1}}}).of("chatt")
    assert "chat" in error.value.remedy


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ttft_ms", "e2e_ms", "p50", "p99", "limit", "rate_rps", "attainment"]), inner
        )
    ),
    max_leaves=8,
)


@given(trees)
def test_any_tree_gives_an_slo_or_a_typed_error(tree: object) -> None:
    try:
        slo = slo_from({"classes": {"chat": tree}})
    except PlannerError as error:
        assert error.file and str(error)
        return
    for target in slo.of("chat").targets:
        assert target.limit_s > 0
