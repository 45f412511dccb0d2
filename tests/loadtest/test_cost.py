"""What tokens cost, and which of them count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.cost import Rent, cost_of
from loadtest.report import as_json, build
from loadtest.types import Outcome, Slo
from tests.loadtest.builders import record
from tests.loadtest.test_results import result, some

SLO = Slo(ttft_ms=500)
RENT = Rent(4.0, "test")


def test_only_tokens_within_the_slo_share_the_price() -> None:
    good = [record([100, 200], number=n, output_tokens=100) for n in range(3)]
    late = record([900, 950], number=3, output_tokens=100)
    cut = record([100, 200], Outcome.CUT, number=4, output_tokens=50)
    cost = cost_of([*good, late, cut], lambda _: SLO, 36.0, RENT, tokens_per_s=400 / 36)
    assert cost.usd == pytest.approx(0.04) and cost.output_tokens == 400 and cost.good_tokens == 300
    assert cost.usd_per_million_tokens == pytest.approx(100) and cost.usd_per_million_good_tokens == pytest.approx(
        133.333, 1e-3
    )


def test_no_token_within_the_slo_has_no_price_rather_than_none() -> None:
    cost = cost_of([record([900, 950])], lambda _: SLO, 10.0, RENT, tokens_per_s=0.2)
    assert cost.good_tokens == 0 and cost.usd_per_million_good_tokens is None and cost.usd_per_million_tokens
    without = cost_of([record()], lambda _: Slo(), 10.0, RENT, tokens_per_s=0.2)
    assert without.good_tokens is None and without.usd_per_million_good_tokens is None


def test_a_server_that_falls_behind_does_not_get_cheaper() -> None:
    """Due in 10 s and served in 100: a token costs what the deployment does while it comes out."""
    records = [record([(n + 1) * 100.0], number=n, due_ms=n * 10.0, output_tokens=10) for n in range(1000)]
    cost = build(replace(result(records), spec=replace(result(records).spec, rent=RENT))).cost
    assert cost is not None and cost.usd_per_million_tokens == pytest.approx(4 / 3600 / 100 * 1e6, rel=0.01)


def test_the_report_prices_its_window() -> None:
    made = result(some(11, late=1))
    made = replace(made, spec=replace(made.spec, rent=Rent(7.2, "a plan")))
    cost = build(made).cost
    # Eleven requests in a window of 1.1 s, two tokens each, one of them late.
    assert cost is not None and cost.usd == pytest.approx(0.0022) and cost.good_tokens == 20
    assert as_json(build(made), made)["cost"]["source"] == "a plan"
    assert build(result(some(3))).cost is None


def test_each_class_has_its_own_slo() -> None:
    records = [record([900, 950], number=0, slo_class="batch"), record([900, 950], number=1, slo_class="chat")]
    cost = cost_of(records, lambda name: Slo(ttft_ms=5000 if name == "batch" else 500), 10.0, RENT, tokens_per_s=0.4)
    assert cost.good_tokens == 2 and cost.output_tokens == 4
