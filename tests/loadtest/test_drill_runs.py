"""Drills that really harm something: a truth server's process, and a deployment that is only an admin API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from loadtest.cli import load_app
from loadtest.cli_drill import save_drill
from loadtest.cli_report import asking_for_moves
from loadtest.drill.conductor import Conductor
from loadtest.drill.hands import Deed, Hands
from loadtest.drill.report import DrillReport
from loadtest.drill.timeline import Action, Kind, parse_action
from loadtest.report import build
from loadtest.saved import read_run
from loadtest.spec import RunResult, RunSpec
from loadtest.truth import TruthConfig, TruthServer
from loadtest.types import Target
from tests.loadtest.builders import record
from tests.loadtest.conftest import QUICK
from tests.loadtest.fake_ferry import TOKEN, FakeFerry, replica

pytestmark = pytest.mark.slow


def hands(fake: FakeFerry, token: str = TOKEN) -> Hands:
    return Hands(Target(fake.base_url, headers=(("Authorization", f"Bearer {token}"),)))


def do(hands_: Hands, text: str) -> Deed:
    return hands_.do(parse_action(text))


@contextmanager
def host(name: str = "ray::Replica") -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """A process named as Ray names replicas, with a child named as vLLM names engine cores."""
    core = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'VLLM::EngineCore', 0, 0, 0); time.sleep(60)"
    # The inner shell carries the name; its child names itself.
    shell = subprocess.Popen(
        ["bash", "-c", 'exec -a "$NAME" bash -c \'"$PYTHON" -c "$CORE" & wait\''],
        env={**os.environ, "CORE": core, "NAME": name, "PYTHON": sys.executable},
    )
    parent = psutil.Process(shell.pid)
    try:
        until_s = time.monotonic() + 10
        while not any("EngineCor" in child.name() for child in parent.children()):
            assert time.monotonic() < until_s, parent.children()
            time.sleep(0.02)
        yield parent, parent.children()[0]
    finally:
        for process in [*parent.children(recursive=True), parent] if parent.is_running() else []:
            process.kill()
        shell.wait()


def becomes(process: psutil.Process, status: str) -> bool:
    """Signals take a moment."""
    until_s = time.monotonic() + 5
    while process.is_running() and process.status() != status and time.monotonic() < until_s:
        time.sleep(0.01)
    return process.is_running() and bool(process.status() == status)


def test_a_replica_is_drained_through_the_admin_api_and_the_busiest_is_found() -> None:
    replicas = [replica("d-1", running=2), replica("d-2", running=5), replica("p-1", pool="prefill", running=9)]
    with FakeFerry(*replicas) as fake:
        deed = do(hands(fake), "1 drain busiest:decode")
        assert deed.ok and deed.replica == "d-2" and fake.replicas[1]["state"] == "draining"
        assert do(hands(fake), "1 drain busiest:decode").replica == "d-1", "a draining one is not chosen again"
        assert do(hands(fake), "1 undrain d-2").ok and fake.replicas[1]["state"] == "ready"
        missing = do(hands(fake), "1 drain nobody")
        assert not missing.ok and "404" in missing.told
        assert "no replica of pool 'x' is ready" in do(hands(fake), "1 drain busiest:x").told
        assert "--admin-token" in do(hands(fake, "wrong"), "1 drain d-1").told
    assert "cannot reach" in do(hands(fake), "1 drain d-1").told


def test_the_core_of_a_replica_is_killed_and_its_host_lives() -> None:
    with host() as (parent, core), FakeFerry(replica("d-1", pid=parent.pid)) as fake:
        stopped = do(hands(fake), "1 stop d-1")
        assert stopped.ok and becomes(core, psutil.STATUS_STOPPED), stopped
        assert do(hands(fake), "1 continue d-1").ok
        killed = do(hands(fake), "1 kill d-1")
        assert killed.ok and killed.told == f"SIGKILL to process {core.pid}"
        core.wait(5)


def test_a_host_is_killed_with_all_that_is_its_own() -> None:
    with host() as (parent, core), FakeFerry(replica("d-1", pid=parent.pid)) as fake:
        assert do(hands(fake), "1 kill-host d-1").ok
        parent.wait(5)
        assert becomes(core, psutil.STATUS_ZOMBIE) or not core.is_running()


def test_a_process_that_is_no_replica_is_left_alone() -> None:
    """The pid in a status may be one of another machine: whoever has that number here did nothing."""
    with host("innocent") as (parent, core), FakeFerry(replica("d-1", pid=parent.pid)) as fake:
        deed = do(hands(fake), "1 kill-host d-1")
        assert not deed.ok and "is no replica" in deed.told and parent.is_running() and core.is_running()
    with FakeFerry(replica("d-1", pid=2**22 + 1)) as fake:
        assert not do(hands(fake), "1 kill d-1").ok
        assert "no replica d-9; there are d-1" in do(hands(fake), "1 kill d-9").told


def test_a_notice_is_told_with_its_lead_and_the_host_is_taken_when_that_is_over() -> None:
    with host() as (parent, core), FakeFerry(replica("d-1", pid=parent.pid, running=2)) as fake:
        with Conductor([parse_action("0.1 notice busiest:decode 0.6s")], hands(fake)) as conductor:
            conductor.begin(time.monotonic_ns())
            time.sleep(0.4)
            assert 'POST /admin/v1/replicas/d-1/drain {"deadline_s": 0.6}' in fake.asked and parent.is_running()
            parent.wait(5)
            time.sleep(0.2)
        noticed, taken = conductor.done
        assert noticed.what == "notice busiest:decode 0.6s" and taken.what == "take d-1" and not conductor.undone
        assert (
            taken.ok and str(core.pid) in taken.told and taken.began_s == pytest.approx(noticed.began_s + 0.6, abs=0.3)
        )


def test_a_replica_that_left_in_time_need_not_be_taken() -> None:
    with FakeFerry(replica("d-1", running=2)) as fake:
        fake.replicas.clear()
        assert do(hands(fake), "1 take d-1") == Deed(True, "it had left already", "d-1")
        with Conductor([parse_action("0 notice d-1 60s")], hands(fake)) as conductor:
            conductor.begin(time.monotonic_ns())
            time.sleep(0.2)
        assert not conductor.done[0].ok and not conductor.undone, "without a notice nothing is taken"


def test_a_hook_is_posted_to() -> None:
    with FakeFerry() as fake:
        assert do(hands(fake), f"1 post {fake.base_url}/hook?node=a") == Deed(True, "status 200: noted")
        assert fake.asked == ["POST /hook?node=a {}"]
        assert not do(hands(fake), f"1 post {fake.base_url}/elsewhere").ok
    assert "cannot reach" in do(hands(fake), f"1 post {fake.base_url}/hook").told
    assert "no relay" in do(hands(fake), "1 slow 5ms").told


def test_a_replica_that_does_not_tell_its_process_is_a_deed_that_failed() -> None:
    with FakeFerry({**replica("d-1"), "pid": None}, {**replica("d-2"), "running": "many"}) as fake:
        assert do(hands(fake), "1 kill d-1") == Deed(False, "d-1 does not tell its process: its pid is null", "d-1")
        surprised = do(hands(fake), "1 drain busiest:decode")
        assert not surprised.ok and "ValueError" in surprised.told, "nobody thought of such an answer"
        actions = [parse_action(text) for text in ("0 drain busiest:decode", "0.1 run true")]
        with Conductor(actions, hands(fake)) as conductor:
            conductor.begin(time.monotonic_ns())
            time.sleep(0.4)
    assert [one.ok for one in conductor.done] == [False, True] and not conductor.undone


def test_a_url_that_cannot_go_over_the_wire_is_refused() -> None:
    with FakeFerry() as fake:
        deed = hands(fake).do(Action(0.0, Kind.POST, f"{fake.base_url}/hook?zone=東京"))
        assert not deed.ok and "percent-encoded" in deed.told and not fake.asked


def test_what_a_command_leaves_in_the_background_is_not_waited_for() -> None:
    with FakeFerry() as fake:
        began_s = time.monotonic()
        assert do(hands(fake), "1 run (sleep 4; echo later) & echo begun") == Deed(True, "exit code 0: begun")
        assert time.monotonic() - began_s < 3


def test_a_load_is_kept_where_its_drill_cannot_be_told(tmp_path: Path) -> None:
    result = RunResult(RunSpec(Target("http://x"), ()), "r", 0, 0.0, (record(),), (), False, ())

    def tell() -> DrillReport:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        save_drill(result, build(result), tmp_path, tell)
    assert len(read_run(tmp_path).records) == 1


def test_a_command_tells_how_it_ended() -> None:
    with FakeFerry() as fake:
        assert do(hands(fake), "1 run echo done; exit 3") == Deed(False, "exit code 3: done")
        assert do(hands(fake), "1 run true") == Deed(True, "exit code 0")


def test_actions_are_done_on_time_and_those_after_the_end_are_not() -> None:
    with FakeFerry(replica("d-1", running=3)) as fake:
        actions = [parse_action(text) for text in ("0.1 drain d-1", "0.3 run true", "60 run true")]
        with Conductor(actions, hands(fake)) as conductor:
            conductor.begin(time.monotonic_ns())
            time.sleep(0.5)
            fake.replicas[0]["running"] = 0
            time.sleep(0.6)
        first, second = conductor.done
    assert 0.1 <= first.began_s < 0.28 and second.began_s >= 0.3
    assert first.emptied_s is not None and 0.5 <= first.emptied_s < 1.3, "when it had nothing left"


def drill(truth: TruthServer, folder: Path, *arguments: str) -> Result:
    common = ["--base-url", truth.base_url, "--save-dir", str(folder), "--isl", "5", "--timeout-s", "5", "--json"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(load_app, ["drill", *common, *arguments])


def told(result: Result) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return tree


STREAMS = TruthConfig(ttft_ms=20, gap_ms=20, tokens=50)
LOAD = ("--request-rate", "20", "--num-prompts", "100", "--osl", "50", "--goodput", "ttft:300 max_gap:300")


def test_a_server_that_stands_still_for_a_second_harms_what_runs_and_then_recovers(tmp_path: Path) -> None:
    with TruthServer(STREAMS) as truth:
        page = tmp_path / "drill.html"
        stop, go = f"2 stop pid:{truth.pid}", f"3 continue pid:{truth.pid}"
        result = drill(truth, tmp_path, *LOAD, "--warmup-s", "0.5", "--do", stop, "--do", go, "--html", str(page))
        assert result.exit_code in (1, 3), result.output
    stopped, went_on = told(result)["drill"]["actions"]
    # Streams last a second at 20 a second: some 20 are open, and none is lost.
    assert 10 <= stopped["streams"]["open"] <= 30 and stopped["streams"]["lost"] == 0
    assert 900 <= stopped["streams"]["longest_gap"]["max_ms"] <= 1600 and stopped["streams"]["moves"] is None
    assert stopped["recovery"]["after_s"] is None, "the next action came before it could be seen"
    before, during, *_ = told(result)["drill"]["phases"]
    assert before["gap"]["max_ms"] < 300 < during["gap"]["max_ms"] and before["from_s"] == 0.5
    assert went_on["action"]["ok"] and "SIGCONT" in went_on["action"]["told"]
    run = read_run(tmp_path)
    assert run.document.drill is not None and run.document.drill.actions[0].streams.open == stopped["streams"]["open"]
    text = page.read_text()
    assert "The drill" in text and text.count('class="line event"') >= 2 * 5, "both in every chart over time"


def test_a_server_that_is_killed_loses_its_streams_and_the_exit_code_tells(tmp_path: Path) -> None:
    with TruthServer(STREAMS) as truth:
        result = drill(truth, tmp_path, *LOAD, "--do", f"2 kill pid:{truth.pid}")
    (killed,) = told(result)["drill"]["actions"]
    assert result.exit_code in (1, 3), result.output
    streams = killed["streams"]
    assert streams["open"] == streams["lost"] > 5 and streams["completed"] == 0
    assert streams["cut"] == streams["outcomes"]["cut"] > 5
    assert killed["recovery"]["after_s"] is None and killed["recovery"]["harmed_most"] >= streams["lost"]


def test_a_slow_network_is_seen_while_it_is_slow_and_only_then(tmp_path: Path) -> None:
    with TruthServer(replace(STREAMS, tokens=10)) as truth:
        slow = ("--do", "2 slow 150ms", "--do", "4 slow off", "--usd-per-hour", "36")
        result = drill(truth, tmp_path, *LOAD, "--osl", "10", "--goodput", "ttft:250", *slow)
    slowed, freed = told(result)["drill"]["actions"]
    assert slowed["action"]["ok"] and freed["action"]["ok"] and slowed["streams"]["lost"] == 0, result.output
    requests = [one for one in read_run(tmp_path).records if one.ttft_ns is not None]
    start_ns = min(one.due_ns for one in requests)
    meanwhile = [one.ttft_ns / 1e6 for one in requests if 2.2e9 < one.due_ns - start_ns < 3.6e9 and one.ttft_ns]
    others = [one.ttft_ns / 1e6 for one in requests if one.due_ns - start_ns < 1.8e9 and one.ttft_ns]
    assert len(meanwhile) > 15 and 315 <= sorted(meanwhile)[len(meanwhile) // 2] <= 400, "there and back: 300 ms more"
    assert sorted(others)[len(others) // 2] < 60
    assert told(result)["drill"]["extra_usd"] > 0
    assert all(one.ok and one.output_tokens == 10 for one in requests), "nothing is lost or mixed up on the way"


def test_a_relay_passes_on_that_the_server_is_gone(tmp_path: Path) -> None:
    with TruthServer(STREAMS) as truth:
        result = drill(truth, tmp_path, *LOAD, "--do", "1 slow 20ms", "--do", f"2 kill pid:{truth.pid}")
    streams = told(result)["drill"]["actions"][1]["streams"]
    assert streams["cut"] == streams["lost"] > 5, result.output
    assert streams["completed"] <= 4, "whose last events were on their way already"


def test_texts_of_a_drill_that_harms_nothing_are_exact(tmp_path: Path, truth: TruthServer) -> None:
    truth.change(replace(QUICK, tokens=8))
    load = ("--max-concurrency", "1", "--num-prompts", "14", "--osl", "8")
    result = drill(truth, tmp_path, *load, "--do", "0.1 run true", "--check-text")
    assert result.exit_code in (0, 3), result.output
    texts = told(result)["drill"]["texts"]
    # The truth server's words depend on how many requests it has had, so 14 more bring the same ones again.
    assert texts["drill"] == texts["control"] == {"exact": 14} and texts["excess"] == 0


def test_an_action_that_fails_makes_no_drill(tmp_path: Path, truth: TruthServer) -> None:
    load = ("--max-concurrency", "2", "--num-prompts", "6", "--osl", "8")
    result = drill(truth, tmp_path, *load, "--do", "0.05 run exit 4", "--do", "90 run true")
    assert result.exit_code == 2, result.output
    found = told(result)["drill"]
    assert not found["actions"][0]["action"]["ok"] and found["undone"] == ["run true"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "a drill needs an action"),
        (("--do", "1 explode x"), "is none of drain"),
        (("--do", "1 drain d-1"), "/admin/v1/replicas"),
        (("--timeline", "missing.yaml"), "cannot be read"),
        (("--do", "1 notice d-1"), "is not `REPLICA LEAD`"),
        (("--do", "1 slow down"), "`80ms`"),
        (("--do", "1 slow 80ms", "--workers", "ray:127.0.0.1:1"), "on this machine"),
        (("--do", "1 run true", "--usd-per-hour", "-1"), "--usd-per-hour"),
    ],
)
def test_what_cannot_be_drilled_is_told_before_the_load(
    tmp_path: Path, truth: TruthServer, arguments: tuple[str, ...], why: str
) -> None:
    result = drill(truth, tmp_path, *arguments)
    assert result.exit_code == 2 and why in result.output and not list(tmp_path.glob("*.json")), result.output


def test_a_run_asks_for_moves_only_if_told_to() -> None:
    asked = asking_for_moves(Target("http://x", headers=(("A", "b"),)))
    assert asked.headers == (("A", "b"), ("X-Ferry-Moves", "1")) and asked.base_url == "http://x"
    assert "--moves" in CliRunner(env={"COLUMNS": "200"}).invoke(load_app, ["run", "--help"]).output
