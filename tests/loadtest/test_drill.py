"""What a drill says of a load that was harmed at a known instant: pure parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.drill.phases import Harm, Recovery, harm_of, harmed_per_second, harmed_spans, recovery, usual_of
from loadtest.drill.report import AFTER, BEFORE, DURING, ActionDone, DrillReport, drill_report
from loadtest.drill.slowness import FREE, Link, Slowness, parse_slowness
from loadtest.drill.texts import TextVerdict, check_texts, compare_texts
from loadtest.drill.timeline import Action, Kind, parse_action, timeline_from
from loadtest.moves import Moves, ToldMove
from loadtest.types import LoadTestError, Outcome, Record, Slo
from tests.loadtest.builders import MS, record

SLO = Slo(ttft_ms=500, max_gap_ms=200)


def steady(number: int, due_ms: float, *, stall_at_ms: float | None = None, stall_ms: float = 0.0) -> Record:
    """A stream of 20 tokens, one each 100 ms, that stands still at an instant of the run."""
    events, at_ms = [], due_ms + 100.0
    for _ in range(20):
        if stall_at_ms is not None and at_ms >= stall_at_ms:
            at_ms, stall_at_ms = at_ms + stall_ms, None
        events.append(at_ms)
        at_ms += 100.0
    return record(events, number=number, due_ms=due_ms)


def harmed_load() -> list[Record]:
    """Four streams a second for 20 s. At 8 s all that run stand still for 1.5 s, and one of them is cut."""
    records = []
    for number in range(80):
        due_ms = 250.0 * number
        running = due_ms < 8000 < due_ms + 2000
        records.append(steady(number, due_ms, stall_at_ms=8000 if running else None, stall_ms=1500))
    victim = records[30]  # due at 7.5 s
    cut = victim.event_ns[:4]
    records[30] = replace(
        victim, outcome=Outcome.CUT, detail="reset", event_ns=cut, last_ns=int(cut[-1]), end_ns=int(8.1e9)
    )
    told = (ToldMove(int(9.6e9), "kv", "drain", 5, 1500.0),)
    records[29] = replace(records[29], moves=Moves(1, 0, (1500.0,), 0, told))
    records[28] = replace(records[28], moves=Moves(0, 0, (), 0))
    return records


DONE = ActionDone("drain d-1", at_s=8.0, began_s=8.0, took_s=0.1, ok=True, told="", replica="d-1")


def report(records: list[Record], slo: Slo = SLO, *done: ActionDone) -> DrillReport:
    return drill_report(records, lambda _: slo, done, (), run_id="r", start_ns=0)


def test_a_harmed_load_is_told_as_it_was() -> None:
    told = report(harmed_load(), SLO, DONE)
    (one,) = told.actions
    # Due from 6.25 to 8.0 s: the last is sent at the instant of the action, and never stands still.
    assert one.streams.open == 8 and one.streams.lost == one.streams.cut == 1 and one.streams.completed == 7
    assert one.streams.longest_gap.max_ms == pytest.approx(1600) and one.streams.outcomes == {"cut": 1, "ok": 7}
    assert one.streams.moves is not None and one.streams.moves.requests == 1
    assert one.recovery.after_s == pytest.approx(2.0) and one.recovery.harmed_most == 7
    assert [phase.name for phase in told.phases] == [BEFORE, DURING, AFTER]
    before, during, after = told.phases
    assert before.gap.max_ms == pytest.approx(100) and during.gap.max_ms == pytest.approx(1600)
    assert after.gap.max_ms == pytest.approx(100) and before.due + during.due + after.due == 80
    assert before.outcomes == {"ok": 25} and during.outcomes["cut"] == 1, "those that were open belong to what was done"
    assert (before.met, after.met) == (before.due, after.due) and during.met == during.due - 7
    assert told.touched_count == 7 and {one.number for one in told.touched} == set(range(25, 32))
    (moved,) = [one for one in told.touched if one.moves]
    assert moved.request_id == "r-29" and moved.moves == ["drain kv"]


def test_a_load_that_nothing_happened_to_recovers_at_once() -> None:
    records = [steady(n, 250.0 * n) for n in range(80)]
    told = report(records, SLO, DONE)
    assert told.actions[0].recovery.after_s == 0 and told.actions[0].recovery.disturbed_s == 0
    assert told.actions[0].streams.lost == 0 and told.touched == () and told.harmed_per_second.count(0) >= 20
    assert told.actions[0].streams.moves is None, "nobody told of moves, which is not that there were none"
    assert report(records).phases[0].due == 80 and report(records).actions == ()


def test_harm_without_an_slo_is_what_is_unusual() -> None:
    records = harmed_load()
    told = report(records, Slo(), DONE)
    harm = told.harms[""]
    assert harm.ttft_ms == harm.gap_ms == pytest.approx(200) and not harm.from_slo
    assert told.actions[0].recovery.after_s == pytest.approx(2.0) and told.phases[0].met is None
    assert harm_of([], Slo()) == Harm(None, None, False)
    nothing_before = report(records, Slo(), replace(DONE, began_s=0.0))
    assert nothing_before.harms[""].ttft_ms is None and nothing_before.actions[0].streams.open == 0


def test_a_recovery_that_the_run_did_not_see_is_not_claimed() -> None:
    records = [one for one in harmed_load() if one.due_ns < 8e9]
    told = report(records, SLO, DONE)
    assert told.actions[0].recovery.after_s is None and [phase.name for phase in told.phases] == [BEFORE, DURING]
    # Nor is one that the next action came upon.
    two = report(harmed_load(), SLO, DONE, replace(DONE, what="kill d-2", began_s=9.0))
    assert two.actions[0].recovery.after_s is None and two.actions[1].recovery.after_s == pytest.approx(1.0)


def test_what_is_usual_is_no_disturbance() -> None:
    harmed = [1, 2, 1, 0, 5, 6, 2, 1, 2, 0, 1]
    usual = usual_of(harmed, 4.5)
    assert usual == 2 and usual_of(harmed, 0.9) == 0
    assert recovery(harmed, usual, 4.0, None, 11.0).after_s == 2.0
    assert recovery(harmed, usual, 4.0, 8.0, 11.0).after_s is None
    assert recovery([0] * 10, 0, 4.5, None, 10.0).after_s == 0.0


def test_the_second_of_the_next_action_does_not_spoil_the_recovery_from_the_one_before() -> None:
    harmed = [0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 0]
    first = recovery(harmed, 0, 2.2, 6.5, 11.0)
    assert first == Recovery(pytest.approx(0.8), disturbed_s=1, harmed_most=5)  # type: ignore[arg-type]
    assert recovery(harmed, 0, 6.5, None, 11.0) == Recovery(0.5, disturbed_s=1, harmed_most=7)


@pytest.mark.parametrize(("action_s", "next_s"), [(6.2, 6.7), (6.2, 7.5), (9.0, None), (12.0, None)])
def test_what_was_hardly_looked_at_has_not_recovered(action_s: float, next_s: float | None) -> None:
    assert recovery([0] * 11, 0, action_s, next_s, 11.0) == Recovery(None, disturbed_s=0, harmed_most=0)


def test_each_way_to_be_harmed() -> None:
    harm = Harm(ttft_ms=500, gap_ms=200, from_slo=True)
    late = record([900.0, 950.0])
    assert list(harmed_spans(late, harm, 0)) == [(0.5, 0.9)]
    stalled = record([100.0, 700.0, 750.0])
    assert list(harmed_spans(stalled, harm, 0)) == [(0.3, 0.7)]
    cut = replace(record([100.0], Outcome.CUT), end_ns=400 * MS)
    assert list(harmed_spans(cut, harm, 0)) == [(0.3, 0.4), (0.4, 0.4)]
    assert list(harmed_spans(cut, Harm(None, None, False), 0)) == [(0.4, 0.4)]
    assert list(harmed_spans(late, Harm(None, None, False), 0)) == []
    assert harmed_per_second([[(0.5, 2.5)], [(0.1, 0.2), (0.7, 0.8)]], 3.0) == [2, 1, 1]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("events_ms", "outcome", "end_ms", "spans"),
    [
        ([], Outcome.TIMED_OUT, 3000, [(0.5, 3.0), (3.0, 3.0)]),
        ([], Outcome.SERVER_ERROR, 400, [(0.4, 0.4)]),  # the limit of gaps is none for the first token
        ([], Outcome.UNFINISHED, 3000, [(0.5, 3.0)]),  # we ended it ourselves, but it hung before
        ([], Outcome.UNFINISHED, 400, []),
        ([], Outcome.UNSENT, 3000, [(0.5, 3.0)]),  # kept back by the concurrency limit: its user waits as well
        ([100.0], Outcome.UNFINISHED, 250, []),
        ([100.0], Outcome.UNFINISHED, 3000, [(0.3, 3.0)]),
    ],
)
def test_a_request_that_does_not_complete_is_harmed_by_its_silence(
    events_ms: list[float], outcome: Outcome, end_ms: int, spans: list[tuple[float, float]], streamed: bool
) -> None:
    harm = Harm(ttft_ms=500, gap_ms=200, from_slo=True)
    broken = replace(record(events_ms, outcome), end_ns=end_ms * MS, streamed=streamed)
    assert list(harmed_spans(broken, harm, 0)) == spans


def test_a_server_that_hangs_until_the_end_is_not_one_that_recovered() -> None:
    """At 8 s all that runs falls silent, and what comes later gets not even a head; we end it all at 30 s."""
    records = []
    for one in (steady(number, 250.0 * number) for number in range(80)):
        heard = one.event_ns[one.event_ns < 8e9]
        if len(heard) < len(one.event_ns):
            first_ns, last_ns = (int(heard[0]), int(heard[-1])) if heard.size else (0, 0)
            one = replace(
                one, outcome=Outcome.UNFINISHED, event_ns=heard, first_ns=first_ns, last_ns=last_ns,
                streamed=heard.size > 0, end_ns=int(30e9),
            )  # fmt: skip
        records.append(one)
    (hung,) = report(records, SLO, DONE).actions
    assert hung.streams.lost == hung.streams.open > 5
    assert hung.recovery.after_s is None and hung.recovery.disturbed_s == 22 and hung.recovery.harmed_most > 50


def test_requests_that_die_unanswered_do_not_make_harm_usual_before_the_action() -> None:
    """Six sent at 6.5 s get no head and die with the action at 8 s, long before their TTFT limit."""
    dying = [
        replace(record([], Outcome.NO_CONNECTION, number=100 + n, due_ms=6500), streamed=False, end_ns=int(8.1e9))
        for n in range(6)
    ]
    limits = Slo(ttft_ms=4000, max_gap_ms=200)
    late = steady(99, 9000, stall_at_ms=9500, stall_ms=1000)
    (killed,) = report([*(steady(n, 250.0 * n) for n in range(80)), *dying, late], limits, DONE).actions
    assert killed.recovery == Recovery(3.0, disturbed_s=3, harmed_most=6)


def test_what_was_due_in_the_warm_up_does_not_tell_what_is_usual() -> None:
    """Its first tokens take 2 s longer and its streams stand still: neither is a limit, nor usual, nor a phase."""
    cold = [steady(100 + n, 100.0 * n, stall_at_ms=100.0 * n, stall_ms=2000) for n in range(20)]
    records = [*cold, *harmed_load()]
    told = drill_report(records, lambda _: Slo(), [DONE], (), run_id="r", start_ns=0, warmup_s=2.0)
    assert told.harms[""].ttft_ms == told.harms[""].gap_ms == pytest.approx(200)
    assert told.actions[0].recovery.after_s == pytest.approx(2.0) and told.harmed_per_second[1] > 7
    before, during, after = told.phases
    assert (before.from_s, before.until_s) == (2.0, 8.0) and before.ttft.max_ms == pytest.approx(100)
    assert before.due == 25 - 8 and before.due + during.due + after.due == 80 - 8
    early = drill_report(records, lambda _: SLO, [DONE], (), run_id="r", start_ns=0, warmup_s=9.0)
    assert early.phases[0].due == 0 and early.actions[0].streams.open == 8, "a stream is one, warm-up or not"


REFERENCE = "the quick brown fox jumps over the lazy dog and runs away"


@pytest.mark.parametrize(
    ("found", "verdict", "at_char"),
    [
        (REFERENCE, TextVerdict.EXACT, len(REFERENCE)),
        (REFERENCE[:20], TextVerdict.CUT, 20),
        ("", TextVerdict.CUT, 0),
        (REFERENCE + " again", TextVerdict.LONGER, len(REFERENCE)),
        (REFERENCE[:25] + REFERENCE[15:], TextVerdict.DUPLICATE, 25),
        (REFERENCE[:15] + REFERENCE[25:], TextVerdict.GAP, 15),
        (REFERENCE[:15] + "cat sleeps", TextVerdict.DIVERGED, 15),
        (None, TextVerdict.UNKNOWN, 0),
    ],
)
def test_texts_are_told_apart(found: str | None, verdict: TextVerdict, at_char: int) -> None:
    result = compare_texts(REFERENCE, found)
    assert result.verdict is verdict and abs(result.at_char - at_char) <= 1


@given(st.text("abcdef", min_size=30, max_size=80), st.integers(10, 29), st.integers(8, 10))
def test_a_piece_that_comes_twice_or_not_at_all_is_seen_wherever_it_lies(text: str, at: int, length: int) -> None:
    twice = text[:at] + text[at - length : at] + text[at:]
    assert compare_texts(text, twice).verdict in (TextVerdict.DUPLICATE, TextVerdict.LONGER)
    missing = text[:at] + text[at + length :]
    assert compare_texts(text, missing).verdict in (TextVerdict.GAP, TextVerdict.CUT)


def texts(*answers: str | None) -> list[Record]:
    return [replace(record(number=n), text=text) for n, text in enumerate(answers)]


def test_the_excess_is_what_the_undisturbed_repetition_does_not_explain() -> None:
    drill = texts("a" * 20, "b" * 20, "x", "d" * 10)
    drill[1] = replace(drill[1], moves=Moves(1, 0, (1.0,), 0, (ToldMove(1, "kv", "drain", 1, 1.0),)))
    reference = texts("a" * 20, "b" * 20, "c" * 20, "d" * 20)
    control = texts("a" * 20, "b" * 20, "y", "d" * 20)
    check = check_texts(drill, reference, control)
    assert check.drill == {"cut": 1, "diverged": 1, "exact": 2} and check.moved == {"exact": 1}
    assert check.control == {"diverged": 1, "exact": 3} and check.excess == pytest.approx(0.25)
    assert set(check.results) == {"2", "3"}
    broken = [replace(reference[0], outcome=Outcome.CUT), *reference[1:]]
    assert check_texts(drill, broken).drill["unknown"] == 1 and check_texts(drill, broken).excess is None


def test_actions_are_read() -> None:
    assert parse_action("20 drain decode-1") == Action(20.0, Kind.DRAIN, "decode-1")
    assert parse_action("1.5s run echo a  b") == Action(1.5, Kind.RUN, "echo a  b")
    assert parse_action("3 kill pid:77").pid == 77 and not parse_action("3 kill pid:77").names_replica
    assert parse_action("9 notice decode-1 30s") == Action(9.0, Kind.NOTICE, "decode-1", lead_s=30.0)
    assert str(parse_action("9 notice busiest:decode 2.5")) == "notice busiest:decode 2.5s"
    assert parse_action("9 post http://hooks.test/notice?a=b").names_replica is False
    assert parse_action("9 slow 80ms 8mbit").slowness == Slowness(0.08, 1e6) and str(parse_action("9 slow off"))
    assert timeline_from({"actions": [{"at_s": 9, "slow": False}]}, "f")[0].slowness == FREE, "`off` in YAML is false"
    file = {"actions": [{"at_s": 9, "run": "true"}, {"at_s": 2.5, "kill-host": "busiest:decode"}]}
    assert timeline_from(file, "f") == [Action(2.5, Kind.KILL_HOST, "busiest:decode"), Action(9.0, Kind.RUN, "true")]


@pytest.mark.parametrize(
    "text",
    (
        *("", "20 drain", "soon drain d", "-1 drain d", "nan drain d", "5 explode d", "5 drain pid:7", "5 kill pid:1"),
        *("5 kill pid:-9", "5 kill pid:x", "inf kill d", "5 notice d", "5 notice d soon", "5 notice d -1s"),
        *("5 notice 3s", "5 notice pid:77 3s", "5 post ftp://x", "5 post hooks", "5 post http://"),
        *("5 post http://h/?zone=東京", "5 post http://h/a b"),
        *("5 slow", "5 slow 3", "5 slow ms", "5 slow 0ms", "5 slow -1mbit", "5 slow 1ms 2ms", "5 slow infms"),
    ),
)
def test_an_action_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(LoadTestError):
        parse_action(text)


@pytest.mark.parametrize(
    ("text", "slowness"),
    [
        ("off", FREE),
        ("80ms", Slowness(delay_s=0.08)),
        ("10mbit", Slowness(bytes_per_s=1.25e6)),
        ("10Mbit  0.5ms", Slowness(0.0005, 1.25e6)),
    ],
)
def test_how_slow(text: str, slowness: Slowness) -> None:
    assert parse_slowness(text, "here") == slowness


PIECES = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10**6)), min_size=1, max_size=20)


@given(pieces=PIECES, delay_s=st.floats(0, 1), bytes_per_s=st.floats(1e4, 1e9))
def test_a_link_carries_in_order_as_much_as_it_can(
    pieces: list[tuple[float, int]], delay_s: float, bytes_per_s: float
) -> None:
    link, now_s, arrivals = Link(), 5.0, list[float]()
    link.slowness = Slowness(delay_s, bytes_per_s)
    for wait_s, size_bytes in pieces:
        now_s += wait_s
        arrivals.append(link.arrives_s(now_s, size_bytes))
        assert arrivals[-1] >= now_s + delay_s + size_bytes / bytes_per_s - 1e-9
    assert arrivals == sorted(arrivals)
    whole_s = sum(size_bytes for _, size_bytes in pieces) / bytes_per_s
    assert arrivals[-1] <= now_s + delay_s + whole_s + 1e-9, "it does not stand idle while there is something"
    link.slowness = FREE
    assert link.arrives_s(now_s + whole_s, 10**6) == pytest.approx(now_s + whole_s), "nor is it slow for ever"


def test_what_actions_cost_is_what_the_time_until_recovery_did_not_buy() -> None:
    paid = drill_report(harmed_load(), lambda _: SLO, [DONE], (), run_id="r", start_ns=0, usd_per_hour=3600.0)
    _, during, _ = paid.phases
    assert during.met is not None and during.until_s - during.from_s == pytest.approx(2.0)
    assert paid.extra_usd == pytest.approx(2.0 * 7 / during.due), "a dollar a second, and seven were harmed"
    assert report(harmed_load(), SLO, DONE).extra_usd is None, "no price"
    no_slo = drill_report(harmed_load(), lambda _: Slo(), [DONE], (), run_id="r", start_ns=0, usd_per_hour=1.0)
    assert no_slo.extra_usd is None
    calm = drill_report([steady(n, 250.0 * n) for n in range(80)], lambda _: SLO, [DONE], (), run_id="r", start_ns=0,
                        usd_per_hour=1.0)  # fmt: skip
    assert not calm.extra_usd


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"actions": 3},
        {"actions": ["20 drain d"]},
        {"actions": [], "more": 1},
        {"actions": [{"at_s": 1}]},
        {"actions": [{"drain": "d"}]},
        {"actions": [{"at_s": True, "drain": "d"}]},
        {"actions": [{"at_s": 1, "drain": "d", "kill": "d"}]},
    ],
)
def test_a_timeline_that_cannot_be_meant_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(LoadTestError):
        timeline_from(data, "f")
