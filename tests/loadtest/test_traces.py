"""Trace readers: on lines in the formats' own words, and on the real files where these are at hand."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.traces import SOURCES, load_trace, thinned
from loadtest.traces.replay import limited, spread_out
from loadtest.types import LoadTestError
from planner import RequestTrace
from tests.research_data import data_file

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:bad,1,1
2024-05-10 00:00:00.009930+00:00,2162,5
"""
BURSTGPT = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,1.2,ChatGPT,472,18,490,Conversation log
45,b,2.0,GPT-4,1087,230,1317,API log
50,a,1.0,ChatGPT,500,0,500,Conversation log
65,a,1.0,ChatGPT,417,276,693,Conversation log
"""
BAILIAN = [
    {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "output_length": 5, "turn": 1,
     "hash_ids": [1, 2, 3]},
    {"chat_id": 2, "parent_chat_id": -1, "timestamp": 1.0, "input_length": 16, "output_length": 6, "turn": 1,
     "hash_ids": [4]},
    {"chat_id": 3, "parent_chat_id": 1, "timestamp": 9.5, "input_length": 60, "output_length": 7, "turn": 2,
     "hash_ids": [1, 2, 3, 5]},
]  # fmt: skip
WEKA = {
    "id": "t1",
    "block_size": 64,
    "requests": [
        {"t": 0.0, "type": "n", "model": "m", "in": 100, "out": 9, "hash_ids": [1, 2], "think_time": 0.0},
        {"t": 8.0, "type": "subagent", "agent_id": "a1", "requests": [
            {"t": 0.0, "type": "n", "model": "s", "in": 50, "out": 3, "hash_ids": [1], "think_time": 0.0},
            {"t": 2.0, "type": "n", "model": "s", "in": 70, "out": 4, "hash_ids": [1, 2], "think_time": 0.5},
        ]},
        {"t": 14.0, "type": "s", "model": "m", "in": 200, "out": 9, "hash_ids": [1, 2, 3], "think_time": 3.0},
    ],
}  # fmt: skip


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_azure_dates_of_both_years_are_read_and_a_bad_line_is_told(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "a.csv", AZURE), rng())
    assert [(one.input_tokens, one.output_tokens) for one in trace.requests] == [(374, 44), (396, 109), (2162, 5)]
    assert trace.requests[0].at_s == 0 and trace.requests[1].at_s == pytest.approx(4.314579, abs=2e-6)
    assert [bad.number for bad in trace.bad_lines] == [4]


def test_burstgpt_strings_sessions_together_and_leaves_failures_out(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "b.csv", BURSTGPT), rng())
    assert [(one.at_s, one.session, one.turn, one.model) for one in trace.requests] == [
        (0, "a", 0, "ChatGPT"),
        (40, "b", 0, "GPT-4"),
        (60, "a", 1, "ChatGPT"),
    ]
    assert [(bad.number, bad.why) for bad in trace.bad_lines] == [(4, "a failed request: no response tokens")]


def test_bailian_turns_belong_to_their_first_chat(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in BAILIAN) + "\n[]\n"
    trace = load_trace(written(tmp_path / "q.jsonl", lines), rng())
    assert [(one.session, one.turn, one.at_s) for one in trace.requests] == [
        ("1", 0, 0.0),
        ("2", 0, 0.5),
        ("1", 1, 9.0),
    ]
    assert trace.requests[2].block_ids == (1, 2, 3, 5) and trace.requests[2].block_tokens == 16
    assert [bad.number for bad in trace.bad_lines] == [4]


def test_mooncake_bins_are_jittered_and_exact_times_are_not(tmp_path: Path) -> None:
    def file(name: str, times_ms: list[int]) -> Path:
        rows = [{"timestamp": at, "input_length": 9, "output_length": 2, "hash_ids": [at]} for at in times_ms]
        return written(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))

    binned = load_trace(file("m.jsonl", [0] * 50 + [2999] * 50), rng())
    times = np.array([one.at_s for one in binned.requests])
    assert len(np.unique(times)) == 100 and times[0] == 0 and times[-1] < 6
    in_first_bin = [one.at_s for one in binned.requests if one.block_ids == (0,)]
    assert max(in_first_bin) < 3 and len(in_first_bin) == 50
    exact = load_trace(file("t.jsonl", [27, 1482]), rng())
    assert [one.at_s for one in exact.requests] == [0, pytest.approx(1.455)]


def test_weka_sessions_have_turns_pauses_and_sub_agents(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "w.jsonl", json.dumps(WEKA) + "\n"), rng())
    assert [(one.session, one.turn, one.at_s, one.think_s) for one in trace.requests] == [
        ("t1", 0, 0.0, None),
        ("t1/a1", 0, 8.0, None),
        ("t1/a1", 1, 10.0, 0.5),
        ("t1", 1, 14.0, 3.0),
    ]
    assert [one.streamed for one in trace.requests] == [False, False, False, True]
    moved = spread_out(trace, np.array([100.0]))
    assert [one.at_s for one in moved.requests] == [100, 108, 110, 114]


def servegen_archive(path: Path) -> Path:
    files = {
        "m/chunk-0-trace.csv": "0,0,0,,0,0\n600,2.0,1.0,Gamma,1.0,0.5\n1200,5.0,2.0,Weibull,nonsense,0.1\n",
        "m/chunk-0-dataset.json": json.dumps(
            {"0": {"input_tokens": "{7: 0.25, 9: 0.75}", "output_tokens": "{3: 1.0}"}}
        ),
        "m/chunk-1-trace.csv": "600,1.0,1.0,Weibull,1.0,1.0\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_servegen_clients_keep_their_rates_and_lengths(tmp_path: Path) -> None:
    path = servegen_archive(tmp_path / "servegen.tar.gz")
    trace = load_trace(path, rng(), duration_s=1200)
    known = [one for one in trace.requests if one.input_tokens is not None]
    assert len(known) == pytest.approx(1200, abs=4 * 1200**0.5)
    assert len(trace.requests) - len(known) == pytest.approx(600, abs=4 * 600**0.5)
    assert {one.input_tokens for one in known} == {7, 9} and {one.output_tokens for one in known} == {3}
    assert np.mean([one.input_tokens == 9 for one in known]) == pytest.approx(0.75, abs=0.05)
    assert trace.requests[0].at_s >= 600 and trace.duration_s < 1200, "the first window is at a rate of 0"
    assert not trace.bad_lines, "the window with nonsense in it was not asked for"
    assert [bad.number for bad in load_trace(path, rng(), duration_s=1300).bad_lines] == [3]


def test_a_sub_agent_stays_or_goes_with_its_session(tmp_path: Path) -> None:
    sessions = "".join(json.dumps({**WEKA, "id": name}) + "\n" for name in ("t1", "t2", "t3"))
    trace = load_trace(written(tmp_path / "w.jsonl", sessions), rng())
    for seed in range(20):
        kept = [one.session for one in thinned(trace, 0.5, np.random.default_rng(seed)).requests]
        assert {name for name in kept if "/" in name} == {f"{name}/a1" for name in kept if "/" not in name}


def test_thinning_and_limits(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "b.csv", BURSTGPT), rng())
    assert len(limited(trace, None, 45.0).requests) == 2 and len(limited(trace, 1, None).requests) == 1
    kept = [{one.session for one in thinned(trace, 0.5, np.random.default_rng(seed)).requests} for seed in range(40)]
    assert {frozenset(sessions) for sessions in kept} == {frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.csv", "a,b,c\n1,2,3\n", "no trace format"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,1\n", "holds no request: line 2"),
        ("x.jsonl.gz", "not gzip", "cannot be read"),
        ("x.tar.gz", "not tar", "cannot be read"),
        ("x.csv", "\udcff", "cannot be read"),
        ("x.csv", 'arrival_s,isl,osl\n1,2,3\n"' + "4\n" * 100_000, "cannot be read"),
        ("x.jsonl", '{"timestamp": 1, "input_length": 2}\n' + "[" * 100_000, "cannot be read"),
    ],
)
def test_files_of_no_use_are_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoadTestError, match=why):
        load_trace(path, rng())
    with pytest.raises(LoadTestError, match="cannot be read"):
        load_trace(tmp_path / "missing.csv", rng())


@pytest.mark.parametrize("packed", [gzip, bz2, lzma])
def test_a_damaged_archive_is_told_and_no_crash(tmp_path: Path, packed: Any) -> None:
    text = "".join(f"{600 * n},1.0,1.0,Gamma,1.0,{scale}\n" for n, scale in enumerate(rng().random(2000))).encode()
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w") as archive:
        member = tarfile.TarInfo("chunk-0-trace.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    whole, path = packed.compress(tape.getvalue()), tmp_path / "servegen.tar.packed"
    for place in range(100, len(whole), len(whole) // 80):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        # Not all damage is seen: a tar file ends before the checksum of what it was packed with.
        with suppress(LoadTestError):
            load_trace(path, rng(), duration_s=1)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadTestError, match="cannot be read"):
        load_trace(path, rng(), duration_s=1)


@pytest.mark.parametrize("dataset", ['{"0": {"inp', '{"0": 3}', '{"noon": {"input_tokens": "{7: 1.0}"}}', "\udcff"])
def test_damaged_lengths_of_servegen_are_refused(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "chunk-0-trace.csv").write_text("0,1.0,1.0,Gamma,1.0,1.0\n")
    (tmp_path / "chunk-0-dataset.json").write_bytes(dataset.encode(errors="surrogateescape"))
    with pytest.raises(LoadTestError, match="cannot be read"):
        load_trace(tmp_path, rng(), duration_s=1)


def real(name: str) -> Path:
    """A trace as its source has it."""
    path = data_file(f"traces/{name}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SOURCES[name].sha256
    return path


def cv_of(trace: RequestTrace) -> float:
    gaps = np.diff([one.at_s for one in trace.requests])
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize(
    ("name", "requests", "mean_in", "mean_out", "cv"),
    [
        ("azure_llm_2023_conv.csv.gz", 19_366, 1155, 211, 1.09),
        ("azure_llm_2023_code.csv.gz", 8_819, 2048, 28, 13.2),
        ("mooncake_conversation_trace.jsonl.gz", 12_031, 12_035, 343, 1.1),
    ],
)
def test_real_traces_are_what_their_readme_says(
    name: str, requests: int, mean_in: float, mean_out: float, cv: float
) -> None:
    trace = load_trace(real(name), rng())
    assert len(trace.requests) == requests and not trace.bad_lines
    assert np.mean([one.input_tokens for one in trace.requests]) == pytest.approx(mean_in, rel=0.001)
    assert np.mean([one.output_tokens for one in trace.requests]) == pytest.approx(mean_out, abs=0.6)
    assert cv_of(trace) == pytest.approx(cv, rel=0.1)


def test_real_weka_sessions() -> None:
    trace = load_trace(real("weka_cc_traces_sample90.jsonl.gz"), rng())
    assert len({one.session.partition("/")[0] for one in trace.requests}) == 90 and not trace.bad_lines
    assert len(trace.requests) > 4_700 and all(one.block_tokens == 64 for one in trace.requests)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["servegen_m-small.tar.gz", "servegen_deepseek-r1.tar.gz"])
def test_real_servegen_clients(name: str) -> None:
    path = real(name)
    trace = load_trace(path, rng(), duration_s=600)
    assert trace == load_trace(path, rng(), duration_s=600)
    assert trace.duration_s < 600 and not trace.bad_lines
    with tarfile.open(path) as archive:
        rates = 0.0
        for member in archive:
            if member.name.endswith("trace.csv"):
                file = archive.extractfile(member)
                assert file is not None
                for line in file.read().decode().splitlines():
                    window_s, rate = line.split(",")[:2]
                    rates += 600 * float(rate) if 0 <= float(window_s) < 600 else 0.0
    assert len(trace.requests) == pytest.approx(rates, rel=0.15) and rates > 100
    # The lengths of some clients are missing in the source.
    known = [one for one in trace.requests if one.input_tokens is not None]
    assert len(known) > 0.3 * len(trace.requests) and all(one.output_tokens is not None for one in known)


def test_gzip_is_read_like_plain_text(tmp_path: Path) -> None:
    plain = load_trace(written(tmp_path / "a.csv", AZURE), rng())
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress(AZURE.encode()))
    assert load_trace(zipped, rng()) == plain


def test_our_own_format_is_read_too(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "f.csv", "arrival_s,isl,osl\n5,10,2\n6.5,20,3\n7,x,1\n"), rng())
    assert [(one.at_s, one.input_tokens, one.output_tokens) for one in trace.requests] == [(0, 10, 2), (1.5, 20, 3)]
    assert trace.bad_lines[0].number == 4 and "not a number" in trace.bad_lines[0].why
