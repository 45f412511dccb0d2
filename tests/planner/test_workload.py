"""Workloads: the laws have the moments that their words say, samples repeat to the byte, odd documents are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from planner import PlannerError, Sample, Workload, read_workload, slo_from, traffic_under, workload_from

CONSTANT = {"kind": "constant", "isl": 1000, "osl": 200}
POISSON = {"kind": "poisson", "rate_rps": 10}
MANY = 40_000

LENGTHS: dict[str, dict[str, Any]] = {
    "constant": CONSTANT,
    "uniform": {"kind": "uniform", "isl": [800, 1000], "osl": [1, 3]},
    "lognormal": {
        "kind": "lognormal",
        "isl": {"mean": 1000, "cv": 1.0},
        "osl": {"mean": 200, "cv": 0.5},
        "correlation": 0.6,
    },
    "empirical": {"kind": "empirical", "pairs": [[100, 10], [200, 20, 3]]},
    "mixture": {
        "kind": "mixture",
        "parts": [{"weight": 1, "lengths": CONSTANT}, {"weight": 3, "lengths": {**CONSTANT, "isl": 10}}],
    },
}
ARRIVALS: dict[str, dict[str, Any]] = {
    "constant": {"kind": "constant", "rate_rps": 5},
    "poisson": POISSON,
    "gamma": {"kind": "gamma", "rate_rps": 10, "cv": 2.0},
    "weibull": {"kind": "weibull", "rate_rps": 10, "cv": 1.5},
    "on_off": {"kind": "on_off", "on_rps": 30, "off_rps": 1, "on_s": 2, "off_s": 8},
    "steps": {"kind": "steps", "steps": [{"for_s": 30, "rate_rps": 8}, {"for_s": 10, "rate_rps": 0}]},
}


def workload(lengths: object = CONSTANT, arrivals: object = POISSON, **more: object) -> Workload:
    stream = {"lengths": lengths, "arrivals": arrivals, **more}
    return workload_from({"streams": {"chat": stream}}, file="mine.yaml")


def arrival_s(sample: Sample) -> np.ndarray:
    assert sample.arrival_s is not None
    return sample.arrival_s


def as_bytes(sample: Sample) -> bytes:
    arrays = (arrival_s(sample), sample.isl, sample.osl, sample.prefix, sample.prefix_tokens, sample.stream)
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_samples_repeat_to_the_byte_and_begin_alike(lengths: object, arrivals: object) -> None:
    traffic = workload(lengths, arrivals, prefix={"groups": 3, "tokens": 50, "share": 0.5})
    long, short = traffic.sample(7, 500), traffic.sample(7, 100)
    assert as_bytes(long) == as_bytes(traffic.sample(7, 500))
    assert arrival_s(long)[:100].tobytes() == arrival_s(short).tobytes()
    assert long.isl[:100].tobytes() == short.isl.tobytes()
    assert long.prefix[:100].tobytes() == short.prefix.tobytes()
    if lengths is not CONSTANT or arrivals is not ARRIVALS["constant"]:
        assert as_bytes(long) != as_bytes(traffic.sample(8, 500))
    assert (np.diff(arrival_s(long)) >= 0).all()
    assert long.isl.dtype == long.osl.dtype == np.int64
    assert (long.isl > 0).all() and (long.osl > 0).all()
    assert (long.prefix_tokens < long.isl).all()


def test_a_known_sample() -> None:
    """Pins the bytes: another version of NumPy or SciPy must give the same traffic."""
    sample = workload(LENGTHS["lognormal"]).sample(1, 3)
    assert sample.isl.tolist() == [1086, 324, 1006]
    assert arrival_s(sample) == pytest.approx([0.1183537542707, 0.1927659366147, 0.2272898822607], rel=1e-12)


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
def test_the_mean_rate_is_as_declared(arrivals: dict[str, Any]) -> None:
    traffic = workload(arrivals=arrivals)
    times = arrival_s(traffic.sample(3, MANY))
    tolerance = 0.15 if arrivals["kind"] == "on_off" else 0.06  # a few hundred spells of random length
    assert len(times) / times[-1] == pytest.approx(traffic.mean_rate_rps("chat"), rel=tolerance)


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("gamma", 0.3), ("weibull", 1.5)])
def test_gaps_have_the_declared_burstiness(kind: str, cv: float) -> None:
    spread = {} if kind == "poisson" else {"cv": cv}
    gaps = np.diff(arrival_s(workload(arrivals={"kind": kind, "rate_rps": 10, **spread}).sample(5, MANY)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_burstiness_is_the_word_of_vllm_bench() -> None:
    by_cv = workload(arrivals={"kind": "gamma", "rate_rps": 10, "cv": 2.0})
    by_shape = workload(arrivals={"kind": "gamma", "rate_rps": 10, "burstiness": 0.25})
    assert as_bytes(by_cv.sample(1, 50)) == as_bytes(by_shape.sample(1, 50))


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(arrival_s(workload().sample(11, 5000)))
    assert stats.kstest(gaps, "expon", args=(0, 0.1)).pvalue > 0.01


def test_steps_keep_their_rates_and_their_silence() -> None:
    times = arrival_s(workload(arrivals=ARRIVALS["steps"]).sample(2, MANY))
    phase = times % 40
    assert (phase <= 30 + 1e-9).all()
    busy_s = times[-1] * 30 / 40
    assert len(times) / busy_s == pytest.approx(8, rel=0.03)


def test_on_off_is_burstier_than_poisson() -> None:
    times = arrival_s(workload(arrivals=ARRIVALS["on_off"]).sample(4, MANY))
    counts = np.bincount(times.astype(int))
    assert counts.var() / counts.mean() > 3


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
def test_another_rate_is_the_same_pattern_on_a_faster_clock(arrivals: dict[str, Any]) -> None:
    traffic = workload(LENGTHS["lognormal"], arrivals)
    faster = traffic.at_rate("chat", 3 * traffic.mean_rate_rps("chat"))
    assert faster.mean_rate_rps("chat") == pytest.approx(3 * traffic.mean_rate_rps("chat"))
    assert (faster.sample(1, 200).isl == traffic.sample(1, 200).isl).all()
    if arrivals["kind"] in ("constant", "poisson", "gamma", "weibull"):
        assert arrival_s(faster.sample(1, 200)) * 3 == pytest.approx(arrival_s(traffic.sample(1, 200)))


def test_lognormal_lengths_have_the_declared_moments() -> None:
    sample = workload(LENGTHS["lognormal"]).sample(1, MANY)
    assert sample.isl.mean() == pytest.approx(1000, rel=0.03)
    assert sample.isl.std() / sample.isl.mean() == pytest.approx(1.0, rel=0.06)
    assert sample.osl.mean() == pytest.approx(200, rel=0.03)
    assert np.corrcoef(np.log(sample.isl), np.log(sample.osl))[0, 1] == pytest.approx(0.6, abs=0.02)


def test_the_other_lengths() -> None:
    uniform = workload(LENGTHS["uniform"]).sample(1, MANY)
    assert (uniform.isl.min(), uniform.isl.max()) == (800, 1000)
    assert set(uniform.osl.tolist()) == {1, 2, 3}
    pairs = workload(LENGTHS["empirical"]).sample(1, MANY)
    assert (pairs.isl == 10 * pairs.osl).all()
    assert (pairs.isl == 200).mean() == pytest.approx(0.75, abs=0.01)
    mixed = workload(LENGTHS["mixture"]).sample(1, MANY)
    assert (mixed.isl == 10).mean() == pytest.approx(0.75, abs=0.01)


def test_many_parts_in_a_mixture() -> None:
    parts = [{"weight": 1, "lengths": {**CONSTANT, "isl": isl}} for isl in range(1, 101)]
    sample = workload({"kind": "mixture", "parts": parts}).sample(1, MANY)
    assert set(sample.isl.tolist()) == set(range(1, 101))


def test_prefixes_are_shared_as_declared() -> None:
    sample = workload(prefix={"groups": 10, "tokens": 300, "share": 0.5, "zipf": 1.0}).sample(1, MANY)
    shared = sample.prefix >= 0
    assert shared.mean() == pytest.approx(0.5, abs=0.01)
    assert set(sample.prefix_tokens[shared].tolist()) == {300}
    assert set(sample.prefix_tokens[~shared].tolist()) == {0}
    counts = np.bincount(sample.prefix[shared])
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)


def test_a_new_stream_leaves_the_others_alone() -> None:
    one = {"lengths": LENGTHS["lognormal"], "arrivals": POISSON}
    alone = workload_from({"streams": {"chat": one}}).sample(1, 100)
    both = workload_from({"streams": {"chat": one, "batch": {**one, "lengths": CONSTANT}}})
    assert (both.sample_stream("chat", 1, 100).isl == alone.isl).all()
    merged = both.sample(1, 1000)
    assert merged.streams == ("chat", "batch")
    assert (np.diff(arrival_s(merged)) >= 0).all()
    assert merged.stream.mean() == pytest.approx(0.5, abs=0.06)
    chats = merged.stream == 0
    assert (merged.isl[chats] == both.sample_stream("chat", 1, 1000).isl[: chats.sum()]).all()


def test_a_closed_loop_has_no_times_of_its_own() -> None:
    closed = workload(arrivals={"kind": "closed_loop", "concurrency": 4})
    assert closed.sample(1, 10).arrival_s is None
    with pytest.raises(PlannerError, match="follows from"):
        closed.mean_rate_rps("chat")
    stream = {"lengths": CONSTANT, "arrivals": {"kind": "closed_loop", "concurrency": 4}}
    both = workload_from({"streams": {"a": stream, "b": {"lengths": CONSTANT, "arrivals": POISSON}}})
    with pytest.raises(PlannerError, match="no times to merge"):
        both.sample(1, 10)


def test_an_slo_sets_the_rate_or_agrees_with_it() -> None:
    slo = slo_from({"classes": {"chat": {"ttft_ms": 500, "rate_rps": 10}}})
    assert traffic_under(slo, workload()).mean_rate_rps("chat") == 10
    with pytest.raises(PlannerError, match="promises 10 requests/s"):
        traffic_under(slo, workload(arrivals={"kind": "poisson", "rate_rps": 12}))
    with pytest.raises(PlannerError, match="no such stream"):
        traffic_under(slo_from({"classes": {"chat": {"ttft_ms": 1}, "rag": {"ttft_ms": 1}}}), workload())
    with pytest.raises(PlannerError, match="no such class"):
        traffic_under(slo_from({"classes": {"chat": {"ttft_ms": 1}}}), two_streams())
    closed = slo_from({"classes": {"chat": {"ttft_ms": 500, "concurrency": 8}}})
    with pytest.raises(PlannerError, match="8 concurrent"):
        traffic_under(closed, workload())
    eight = workload(arrivals={"kind": "closed_loop", "concurrency": 8})
    assert traffic_under(closed, eight) == eight


def two_streams() -> Workload:
    stream = {"lengths": CONSTANT, "arrivals": POISSON}
    return workload_from({"streams": {"chat": stream, "rag": stream}})


@pytest.mark.parametrize(
    ("stream", "key", "words"),
    [
        ({"lengths": CONSTANT}, "streams.chat.arrivals", "poisson"),
        ({"arrivals": POISSON}, "streams.chat.lengths", "isl"),
        ({"lenghts": CONSTANT, "arrivals": POISSON}, "streams.chat.lenghts", "lengths"),
        ({"lengths": {**CONSTANT, "kind": "lognorm"}, "arrivals": POISSON}, "streams.chat.lengths.kind", "lognormal"),
        ({"lengths": {"isl": 3}, "arrivals": POISSON}, "streams.chat.lengths.kind", "needed"),
        ({"lengths": {**CONSTANT, "isl": 0}, "arrivals": POISSON}, "streams.chat.lengths.isl", "greater than 0"),
        ({"lengths": {**CONSTANT, "isl": 1.5}, "arrivals": POISSON}, "streams.chat.lengths.isl", "integer"),
        ({"lengths": {"kind": "uniform", "isl": [5, 2], "osl": [1, 2]}, "arrivals": POISSON}, "lengths.isl", "lower"),
        ({"lengths": {"kind": "empirical", "pairs": [[1, 2], [3]]}, "arrivals": POISSON}, "pairs.1", "osl"),
        ({"lengths": {"kind": "empirical", "pairs": [[1, -2]]}, "arrivals": POISSON}, "pairs.0", "above 0"),
        ({"lengths": {"kind": "empirical", "pairs": []}, "arrivals": POISSON}, "pairs", "at least 1"),
        (
            {
                "lengths": {"kind": "lognormal", "isl": {"mean": 5, "cv": 1, "min": 9}, "osl": {"mean": 5, "cv": 1}},
                "arrivals": POISSON,
            },
            "lengths.isl.mean",
            "outside",
        ),
        ({"lengths": CONSTANT, "arrivals": {"kind": "poisson"}}, "arrivals.rate_rps", "needed"),
        ({"lengths": CONSTANT, "arrivals": {**POISSON, "rate_rps": -1}}, "arrivals.rate_rps", "greater than 0"),
        ({"lengths": CONSTANT, "arrivals": {**POISSON, "rate": 1}}, "arrivals.rate", "rate_rps"),
        ({"lengths": CONSTANT, "arrivals": {**POISSON, "kind": "gamma"}}, "arrivals.cv", "burstiness"),
        ({"lengths": CONSTANT, "arrivals": {"kind": "gamma", "rate_rps": 1, "cv": 1, "burstiness": 1}}, "cv", "one of"),
        ({"lengths": CONSTANT, "arrivals": {"kind": "weibull", "rate_rps": 1, "cv": 1e9}}, "arrivals.cv", "less than"),
        (
            {"lengths": CONSTANT, "arrivals": {"kind": "on_off", "on_rps": 1, "off_rps": 2, "on_s": 1, "off_s": 1}},
            "arrivals.off_rps",
            "exchange",
        ),
        (
            {"lengths": CONSTANT, "arrivals": {"kind": "steps", "steps": [{"for_s": 1, "rate_rps": 0}]}},
            "arrivals.steps",
            "above 0",
        ),
        ({"lengths": CONSTANT, "arrivals": POISSON, "prefix": {"groups": 1, "tokens": 0}}, "prefix.tokens", "greater"),
        ({"trace": {"path": "a.csv", "format": "azure"}, "lengths": CONSTANT}, "streams.chat.trace", "lengths"),
        ({"trace": {"path": "a.csv", "format": "azur"}}, "trace.format", "did you mean azure"),
    ],
)
def test_odd_streams_are_refused(stream: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(PlannerError) as error:
        workload_from({"streams": {"chat": stream}}, file="mine.yaml")
    assert error.value.file == "mine.yaml"
    assert error.value.key.endswith(key)
    assert words in f"{error.value.problem} {error.value.remedy}"


def test_odd_requests_are_refused() -> None:
    for bad in (lambda: workload().sample(-1, 5), lambda: workload().sample(1, -5)):
        with pytest.raises(PlannerError, match="negative"):
            bad()
    with pytest.raises(PlannerError, match="no rate"):
        workload().at_rate("chat", 0)
    with pytest.raises(PlannerError) as error:
        workload().at_rate("chta", 1)
    assert "chat" in error.value.remedy
    assert len(workload().sample(1, 0)) == 0


rates = st.floats(1e-3, 1e4)
any_arrivals = st.one_of(
    st.builds(lambda r: {"kind": "poisson", "rate_rps": r}, rates),
    st.builds(lambda r, cv: {"kind": "gamma", "rate_rps": r, "cv": cv}, rates, st.floats(0.001, 100)),
    st.builds(lambda r, cv: {"kind": "weibull", "rate_rps": r, "cv": cv}, rates, st.floats(0.001, 100)),
    st.builds(
        lambda r, on, off: {"kind": "on_off", "on_rps": r, "on_s": on, "off_s": off},
        rates,
        st.floats(0.01, 100),
        st.floats(0.01, 100),
    ),
    st.builds(
        lambda steps: {"kind": "steps", "steps": [{"for_s": a, "rate_rps": b} for a, b in steps]},
        st.lists(st.tuples(st.floats(0.1, 100), st.just(0.0) | rates), min_size=1).filter(
            lambda s: any(b for _, b in s)
        ),
    ),
)


@settings(deadline=None)
@given(any_arrivals, st.integers(0, 2**32))
def test_times_rise_and_are_finite_for_every_process(arrivals: dict[str, Any], seed: int) -> None:
    times = arrival_s(workload(arrivals=arrivals).sample(seed, 64))
    assert np.isfinite(times).all()
    assert (times >= 0).all()
    assert (np.diff(times) >= -1e-9 * (1 + times[1:])).all()


TRACE = "arrival_s,isl,osl\n0,100,10\n1,200,20\n2,300,30\n3,400,40\n"


def trace_workload(tmp_path: Path, text: str = TRACE, **keys: object) -> Workload:
    (tmp_path / "trace.csv").write_text(text, encoding="utf-8")
    lines = [
        "streams:",
        "  chat:",
        "    trace:",
        "      path: trace.csv",
        f"      format: {keys.pop('format', 'ferry')}",
    ]
    lines += [f"      {key}: {value}" for key, value in keys.items()]
    (tmp_path / "workload.yaml").write_text("\n".join(lines), encoding="utf-8")
    return read_workload(tmp_path / "workload.yaml")


def test_a_trace_is_replayed_over_and_over(tmp_path: Path) -> None:
    traffic = trace_workload(tmp_path)
    sample = traffic.sample(1, 6)
    assert arrival_s(sample).tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.isl.tolist() == [100, 200, 300, 400, 100, 200]
    assert traffic.mean_rate_rps("chat") == 1.0


@pytest.mark.parametrize("rate_rps", [0.25, 0.9, 1.0, 2.0, 3.5])
def test_a_trace_at_another_rate(tmp_path: Path, rate_rps: float) -> None:
    sample = trace_workload(tmp_path).at_rate("chat", rate_rps).sample(1, 4000)
    times = arrival_s(sample)
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(rate_rps, rel=0.06)
    assert set(sample.isl.tolist()) == {100, 200, 300, 400}


def test_a_slow_clock_is_spread_over_its_tick(tmp_path: Path) -> None:
    text = "arrival_s,isl,osl\n" + "".join(f"{3 * (at // 10)},100,10\n" for at in range(1000))
    times = arrival_s(trace_workload(tmp_path, text, bin_s=3).sample(1, 3000))
    assert len(np.unique(times)) == 3000
    assert (np.diff(times) >= 0).all()
    assert np.diff(times).std() / np.diff(times).mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (TRACE + "700,1,1\n", "line 6", "max_gap_s"),
        (TRACE + "4,,1\n", "line 6", "missing"),
        (TRACE + "4,5\n", "line 6", "missing"),
        (TRACE + "4,x,1\n", "line 6", "missing"),
        (TRACE + "4,5,0\n", "line 6", "above 0"),
        (TRACE + "4,-5,1\n", "line 6", "above 0"),
        (TRACE + "2,5,1\n", "line 6", "earlier"),
        (TRACE + "nan,5,1\n", "line 6", "not a number"),
        ("time,isl,osl\n0,1,1\n", "line 2", "arrival_s"),
        ("arrival_s,isl,osl\n0,1,1\n", "", "fewer than two"),
        ("", "", "fewer than two"),
    ],
)
def test_a_trace_with_gaps_is_refused(tmp_path: Path, text: str, key: str, words: str) -> None:
    with pytest.raises(PlannerError) as error:
        trace_workload(tmp_path, text)
    assert error.value.key == key
    assert words in f"{error.value.problem} {error.value.remedy}"
    assert error.value.file.endswith("trace.csv")


def test_a_changed_or_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="names another file"):
        trace_workload(tmp_path, sha256='"' + "0" * 64 + '"')
    (tmp_path / "trace.csv").unlink()
    with pytest.raises(PlannerError, match="cannot be read"):
        read_workload(tmp_path / "workload.yaml")


def test_mooncake_prefixes(tmp_path: Path) -> None:
    rows = [(0, 1000, [1, 2]), (100, 1500, [1, 2, 3]), (200, 600, [1, 9]), (300, 500, [4])]
    text = "".join(
        f'{{"timestamp": {at}, "input_length": {isl}, "output_length": 5, "hash_ids": {ids}}}\n'
        for at, isl, ids in rows
    )
    sample = trace_workload(tmp_path, text, format="mooncake").sample(1, 4)
    assert sample.prefix_tokens.tolist() == [0, 1024, 512, 0]
    assert arrival_s(sample) == pytest.approx([0, 0.1, 0.2, 0.3])
