"""What other load generators report beside what the server did: which answers count, and what is subtracted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.document import MetricFigures
from loadtest.truth import Written
from tests.loadtest.builders import MS, record

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from parts.children import BenchFailed
from parts.peer_errors import error_of, figures, served

TOKENS = 3


def written(came_ms: float, *wrote_ms: float, status: int = 200) -> Written:
    at_ns = tuple(round((came_ms + wrote) * MS) for wrote in wrote_ms)
    return Written(f"at-{came_ms}", status, round(came_ms * MS), at_ns, late_max_ns=0)


LOAD = [written(1000, 200, 250, 300), written(1100, 220, 270, 340)]


@pytest.mark.parametrize(
    "besides",
    [
        pytest.param([], id="nothing"),
        pytest.param([written(10, 400, 450, 500)], id="a first request, to warm up"),
        pytest.param([written(1050, 3000)], id="an answer in one piece"),
        pytest.param(
            [written(1050, 5, 6, 7, status=500), written(1200, 5, 6, status=0)], id="errors, and a stream cut"
        ),
    ],
)
def test_only_the_whole_streams_of_the_load_count(besides: list[Written]) -> None:
    truth = served([*LOAD, *besides], requests=2, tokens=TOKENS)
    assert truth.answers == 2 and (truth.begun_s, truth.ended_s) == (1.0, 1.44)
    assert truth.rps == pytest.approx(2 / 0.44)
    values = {name: values_ms.tolist() for name, values_ms in truth.metrics_ms.items()}
    assert values == {"ttft_net": [200, 220], "gap": [50, 50, 50, 70], "tpot": [50, 60], "e2e_net": [300, 340]}


def test_a_server_without_an_answer_is_no_truth() -> None:
    with pytest.raises(BenchFailed):
        served([written(1, 5, 6, 7, status=0)], requests=1, tokens=TOKENS)


def told(mean_ms: float | None, p99_ms: float | None) -> MetricFigures:
    return MetricFigures(mean_ms=mean_ms, completed_ms={"p99": p99_ms})


@pytest.mark.parametrize(
    ("metric", "reported", "error"),
    [
        ("ttft_net", {"ttft_net": told(211.5, 230.0)}, "1.50 /  10.20 "),
        ("ttft_net", {"ttft_net": told(200.0, 219.8)}, "-10.00 /   0.00 "),
        ("gap", {"gap": told(56.0, 69.4), "tpot": told(99.0, 99.0)}, "1.00 /   0.00 "),
        ("gap", {"tpot": told(56.0, 59.9)}, "1.00 /   0.00t"),
        ("e2e_net", {"tpot": told(56.0, 59.9)}, "not told "),
        ("e2e_net", {"e2e_net": told(320.0, None)}, "not told "),
        ("e2e_net", {"e2e_net": told(None, 340.0)}, "not told "),
    ],
)
def test_an_error_is_what_is_reported_less_what_was(
    metric: str, reported: dict[str, MetricFigures], error: str
) -> None:
    assert error_of(reported, served(LOAD, requests=2, tokens=TOKENS), metric) == error


def test_a_log_of_first_and_last_writes_has_no_gaps_and_is_compared_by_tpot() -> None:
    truth = served([written(0, 200, 300), written(9, 220, 340)], requests=2, tokens=TOKENS)
    assert "gap" not in truth.metrics_ms and truth.metrics_ms["tpot"].tolist() == [50, 60]
    assert error_of({"gap": told(55, 59.9), "tpot": told(57, 59.9)}, truth, "gap") == "2.00 /   0.00t"


def test_our_client_in_their_terms() -> None:
    found = figures([record([200, 250, 300]), record([220, 270, 340])])
    send_ms = record([200, 250, 300]).send_ns / MS
    assert found["ttft_net"].mean_ms == pytest.approx(210 - send_ms)
    assert found["e2e_net"].completed_ms["p99"] == pytest.approx(339.6 - send_ms)
    assert found["gap"].mean_ms == found["tpot"].mean_ms == pytest.approx(55)
    assert found["gap"].completed_ms["p99"] == pytest.approx(np.quantile([50, 50, 50, 70], 0.99))
