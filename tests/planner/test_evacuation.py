"""Evacuation headroom: by hand for notices of 120, 30 and 0 s, and laws for all inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner import Evacuation, PlannerError

# Ten replicas' worth of load; one replica holds 60 GB of KV, which its 10 Gb/s link sends in 48 s.
BUSY = Evacuation(
    load_rps=50,
    replica_rps=5,
    lost=1,
    lead_s=120,
    warm_up_s=90,
    stay_s=300,
    kv_bytes=60e9,
    kv_bytes_per_token=320 * 1024,
    link_bytes_per_s=1.25e9,
    prefill_tokens_per_s=20_000,
    replay_within_s=10,
)

evacuations = st.builds(
    Evacuation,
    load_rps=st.floats(0.1, 500),
    replica_rps=st.floats(0.1, 50),
    lost=st.integers(0, 8),
    lead_s=st.floats(0, 300),
    warm_up_s=st.floats(0, 600),
    stay_s=st.floats(0.1, 600),
    kv_bytes=st.floats(0, 1e11),
    kv_bytes_per_token=st.floats(1e4, 1e6),
    link_bytes_per_s=st.floats(1e8, 1e11),
    prefill_tokens_per_s=st.floats(1e3, 1e5),
    replay_within_s=st.floats(1, 60),
)


def test_two_minutes_move_everything_to_the_replacement() -> None:
    assert BUSY.base_replicas == 10
    assert BUSY.transfer_s == 48
    assert BUSY.moved_share == 1
    assert BUSY.replayed_tokens == 0
    # Only what arrives in 90 of 300 s shifts: 11 replicas of which 10 stay see 50 x (10 + 0.3) / 11 = 46.8 of 50.
    assert BUSY.shifted_share == 0.3
    # Without headroom 9 replicas carry 50 x (9 + 0.3) / 10 = 46.5 with 45.
    assert BUSY.shortage(10) == pytest.approx(1.5 / 50)
    assert BUSY.spare_replicas == 1
    assert BUSY.misses_per_event(10) == pytest.approx(1.5 * 90)


def test_thirty_seconds_move_a_part() -> None:
    short = BUSY.with_lead(30)
    assert short.cut_s == 27
    assert short.moved_share == pytest.approx(27 / 48)
    assert short.shifted_share == 1
    tokens = (1 - 27 / 48) * 60e9 / (320 * 1024)
    assert short.replayed_tokens == pytest.approx(tokens)
    assert short.replay_replicas == pytest.approx(tokens / 20_000 / 10)
    # 0.4 replicas replay, one is lost: eleven hold 48 of 50, twelve hold all.
    assert short.spare_replicas == 2


def test_without_notice_everything_is_replayed() -> None:
    none = BUSY.with_lead(0)
    assert none.moved_share == 0
    assert none.replayed_tokens == pytest.approx(60e9 / (320 * 1024))
    assert none.spare_replicas == 2
    assert "0%" in none.line()


def test_attainment_lost_over_time() -> None:
    lost = BUSY.attainment_lost(10, events_per_hour=1)
    assert lost == pytest.approx(135 / (50 * 3600))
    assert BUSY.attainment_lost(11, events_per_hour=1) == 0


@given(evacuations, st.floats(0, 300))
def test_a_longer_notice_never_asks_for_more_headroom(one: Evacuation, more_s: float) -> None:
    assume(one.replay_replicas < 1000 and one.with_lead(0).replay_replicas < 1000)
    assert one.with_lead(one.lead_s + more_s).spare_replicas <= one.spare_replicas
    assert one.spare_replicas <= one.with_lead(0).spare_replicas


@given(evacuations)
def test_the_headroom_suffices_and_one_less_does_not(one: Evacuation) -> None:
    assume(one.replay_replicas < 1000)
    spare = one.spare_replicas
    assert one.holds_with(one.base_replicas + spare)
    assert spare == 0 or not one.holds_with(one.base_replicas + spare - 1)
    assert one.attainment_lost(one.base_replicas + spare, events_per_hour=5) <= 1e-9 * 1000


@given(evacuations, st.floats(1, 10))
def test_a_faster_link_or_warm_up_never_asks_for_more(one: Evacuation, factor: float) -> None:
    assume(one.replay_replicas < 1000)
    assert replace(one, link_bytes_per_s=one.link_bytes_per_s * factor).spare_replicas <= one.spare_replicas
    assert replace(one, warm_up_s=one.warm_up_s / factor).spare_replicas <= one.spare_replicas


def test_losing_nothing_needs_nothing() -> None:
    assert replace(BUSY, lost=0).spare_replicas == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("load_rps", 0), ("lead_s", -1), ("link_bytes_per_s", 0), ("warm_up_s", float("inf")), ("lost", -1)],
)
def test_odd_inputs_are_refused(key: str, value: float) -> None:
    with pytest.raises(PlannerError) as error:
        replace(BUSY, **{key: value})
    assert error.value.key == key


def test_replays_without_end_are_refused() -> None:
    hopeless = replace(BUSY, lead_s=0, kv_bytes=1e15)
    with pytest.raises(PlannerError, match="spare replicas"):
        _ = hopeless.spare_replicas
