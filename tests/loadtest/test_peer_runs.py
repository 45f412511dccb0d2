"""Other load generators' runs: one that works is compared, and none outlives its bounds or leaves anything behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loadtest.truth import TruthConfig, TruthServer

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from parts import peer_runs, peers
from parts.children import BenchFailed, end_group
from parts.peer_runs import Used, line_of
from parts.peers import Job, NotHere, Peer, python_of

TRUTH = TruthConfig(ttft_ms=20.0, gap_ms=5.0, tokens=3)

# Warms up with an answer in one piece, asks twice, reports TTFT 7 ms too long, and leaves a process behind.
CLIENT = """
import json, subprocess, sys, time, urllib.request

def ask(stream):
    data = json.dumps({"stream": stream, "max_tokens": 3}).encode()
    begun_s = time.perf_counter()
    with urllib.request.urlopen(sys.argv[1] + "/v1/chat/completions", data) as answer:
        answer.readline()
        first_ms = (time.perf_counter() - begun_s) * 1e3
        answer.read()
    return first_ms

ask(False)
ttft_ms = [ask(True) for _ in range(2)]
subprocess.Popen(["sleep", "600"], start_new_session=True)
mean_ms = sum(ttft_ms) / 2 + 7
report = {"duration": 1.0, "completed": 2, "failed": 0, "num_prompts": 2, "total_output_tokens": 6,
          "request_throughput": 2.0, "total_input_tokens": 2, "mean_ttft_ms": mean_ms, "p99_ttft_ms": max(ttft_ms) + 7}
open("report.json", "w").write(json.dumps(report))
"""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[psutil.Process]]:
    """What runs of this test have left running."""
    marks = list[str]()
    marked = peer_runs.marked

    def noting(mark: str) -> list[psutil.Process]:
        marks.append(mark)
        return marked(mark)

    monkeypatch.setattr(peer_runs, "marked", noting)
    return lambda: [process for mark in marks for process in marked(mark)]


def job(server: TruthServer, folder: Path) -> Job:
    core = min(os.sched_getaffinity(0))
    return Job(
        server.base_url, requests=2, tokens=3, takes_s=0.06, core=core, tokenizer=folder, folder=folder, streams=1
    )


def peer(code: str) -> Peer:
    return Peer("one", "report.json", lambda python, job: [str(python), "-c", code, job.base_url], package="one==1")


@pytest.mark.slow
def test_a_run_is_compared_with_what_the_server_did_meanwhile(
    tmp_path: Path, left: Callable[[], list[psutil.Process]]
) -> None:
    with TruthServer(TRUTH) as server:
        told = line_of(peer(CLIENT), Path(sys.executable), job(server, tmp_path), server)
    words = told.split()
    assert words[0] == "one" and "2/2" in words and told.count("not told") == 2
    assert 7 <= float(words[1]) < 20, "the answer in one piece took 10 ms longer, and does not count"
    assert not left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no luck')", "exit code 1: no luck"),
        ("print('all well')", "it left no report.json: all well"),
        ("import subprocess; subprocess.run(['sleep', '600'])", "longer than 1 s"),
    ],
)
def test_a_run_that_fails_or_hangs_is_told_and_ended(
    code: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[], list[psutil.Process]],
) -> None:
    monkeypatch.setattr(peer_runs, "START_WITHIN_S", 1.0)
    with TruthServer(TRUTH) as server, pytest.raises(BenchFailed, match=said):
        line_of(peer(code), Path(sys.executable), job(server, tmp_path), server)
    assert not left()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param("echo 'ERROR: no such wheel'; echo '[notice] a newer pip'; exit 1", "^no such wheel$", id="pip"),
        pytest.param(
            "echo 'ERROR: Ignored: 1 Requires-Python >=3.12'; echo 'ERROR: none found'; exit 1",
            r"^none found \(--peer-python",
            id="too old a Python",
        ),
        pytest.param("exit 3", "^exit code 3$", id="without a word"),
        pytest.param("sleep 600 & sleep 600", "^it took longer than 0 s$", id="too slow"),
        pytest.param(None, "No such file", id="no such Python"),
    ],
)
def test_what_does_not_install_says_why(
    script: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "INSTALL_WITHIN_S", 0.4)
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    for _ in range(2):  # half an environment is none
        with pytest.raises(NotHere, match=reason):
            python_of(peer(""), str(python), tmp_path)


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    maker = tmp_path / "python"
    maker.write_text('#!/bin/sh\nmkdir -p "$4/bin"; printf "#!/bin/sh\\necho \\$@ >> $4/asked" > "$4/bin/python"\n')
    maker.write_text(maker.read_text() + 'chmod +x "$4/bin/python"\n')
    maker.chmod(0o755)
    made = [python_of(peer(""), str(maker), tmp_path) for _ in range(2)]
    assert made == [tmp_path / "one-1" / "bin" / "python"] * 2
    assert (tmp_path / "one-1" / "asked").read_text().splitlines() == ["-m pip install --quiet one==1"]


def test_what_is_a_part_of_our_environment_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="no part"):
        python_of(Peer("no_such_module", "", lambda *_: []), "python", tmp_path)


def test_cpu_is_counted_while_the_load_ran() -> None:
    used = Used(at_s=[0, 10, 12, 20], cpu_s=[0, 8, 9, 9.5], peak_rss_bytes=0)
    assert used.cpu_share(10, 12) == pytest.approx(0.5), "its start took 8 s of CPU"
    assert used.cpu_share(9, 11) == pytest.approx((8.5 - 7.2) / 2)


def test_a_group_ends_with_what_its_leader_left_behind() -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; exec sleep 600"]
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    left = psutil.Process(int(leader.stdout.readline()))
    assert os.getpgid(left.pid) == leader.pid
    end_group(leader)
    leader.stdout.close()
    psutil.wait_procs([left], timeout=10)
    assert leader.returncode < 0 and (not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)
