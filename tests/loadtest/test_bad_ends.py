"""`ferry load` when it cannot go on: Ctrl-C, SIGTERM, a full disk, a server that goes away in a sweep or a search."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from loadtest.cli import load_app
from loadtest.interrupts import Interrupts
from loadtest.rates.decide import Ending, Goal
from loadtest.rates.search import Made, search
from loadtest.rates.searched import Searched, statement
from loadtest.rates.whole import not_served
from loadtest.results import read_records
from loadtest.saved import read_run
from loadtest.spec import RunResult, RunSpec
from loadtest.types import LoadTestError, Outcome, Slo, Target
from tests.loadtest.bad_servers import (
    CHAT,
    MODELS,
    TOKENIZE,
    Answer,
    Asked,
    BadServer,
    good,
    refused,
    says_nothing,
    whole,
)
from tests.loadtest.builders import job, record
from tests.loadtest.test_results import result

CODE = "from loadtest.cli import load_app; load_app()"
WITHIN_S = 30.0
QUICK = ("--isl", "5", "--osl", "4")


@contextmanager
def command(*arguments: str, limit_bytes: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """`ferry load …` in a session of its own. Its files may grow to `limit_bytes` each, as if the disk were full."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    with subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and all that it said."""
    out, err = process.communicate(timeout=WITHIN_S)
    assert "Traceback" not in out + err, out + err
    return process.returncode, out + err


def wait_for(condition: Callable[[], Any], what: str) -> None:
    until_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


def asked(server: BadServer) -> int:
    return sum(one.path == CHAT for one in server.asked)


def gone(workers: list[psutil.Process]) -> bool:
    return bool(workers) and not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_seen_until_the_stop_is_saved(number: signal.Signals, tmp_path: Path) -> None:
    flags = ("--save-dir", str(tmp_path), *QUICK, "--request-rate", "50", "--num-prompts", "9000", "--workers", "2")
    with (
        BadServer({CHAT: good(3, pause_s=0.05)}) as server,
        command("run", "--base-url", server.base_url, *flags) as run,
    ):
        wait_for(lambda: asked(server) > 30, "nothing was sent")
        workers = psutil.Process(run.pid).children()
        os.killpg(run.pid, number)  # as Ctrl-C does: to the whole group
        code, told = ended(run)
        assert code == 130 and "interrupted: the figures are of what was seen" in told and "saved:" in told, told
        assert len(workers) == 2 and gone(workers)
    run_ = read_run(tmp_path)
    assert run_.document.interrupted and run_.document.total.due == len(run_.records) < 9000
    assert sum(one.ok for one in run_.records) >= 10


@pytest.mark.slow
def test_a_second_stop_ends_it_at_once_and_a_killed_one_leaves_no_worker(tmp_path: Path) -> None:
    flags = ("--save-dir", str(tmp_path), *QUICK, "--request-rate", "50", "--num-prompts", "9000")
    with BadServer({CHAT: good(3)}) as server:
        with command("run", "--base-url", server.base_url, *flags) as run:
            wait_for(lambda: asked(server) > 3, "nothing was sent")
            workers = psutil.Process(run.pid).children()
            run.send_signal(signal.SIGINT)
            time.sleep(0.005)
            run.send_signal(signal.SIGINT)
            code, told = ended(run)
            assert code == 130 and ("stopped at once" in told or "interrupted" in told) and gone(workers), told
        before = asked(server)
        with command("run", "--base-url", server.base_url, *flags) as run:
            wait_for(lambda: asked(server) > before + 3, "nothing was sent")
            workers = psutil.Process(run.pid).children()
            run.kill()
            wait_for(lambda: gone(workers), "a worker outlived its parent")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_start_is_told(number: signal.Signals, tmp_path: Path) -> None:
    with (
        BadServer({MODELS: says_nothing()}) as server,
        command("run", "--base-url", server.base_url, "--save-dir", str(tmp_path)) as run,
    ):
        wait_for(lambda: server.asked, "nothing was asked")
        os.killpg(run.pid, number)
        code, told = ended(run)
    assert code == 130 and "stopped at once" in told and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_keeps_what_fits_and_says_what_did_not(tmp_path: Path) -> None:
    flags = ("--save-dir", str(tmp_path), *QUICK, "--max-concurrency", "8", "--num-prompts", "400", "--no-watch")
    with (
        BadServer({CHAT: good()}) as server,
        command("run", "--base-url", server.base_url, *flags, limit_bytes=50_000) as run,
    ):
        code, told = ended(run)
    (records_file,) = tmp_path.glob("*.jsonl")
    kept = len(read_records(records_file))
    assert code == 2 and "400 due" in told and f"not all could be saved: {kept} of 400 records are in" in told, told
    assert 20 < kept < 400 and read_run(tmp_path).document.total.due == 400


@pytest.mark.slow
def test_output_that_nobody_can_take_is_told(tmp_path: Path) -> None:
    flags = [
        "--save-dir",
        str(tmp_path),
        *QUICK,
        "--max-concurrency",
        "2",
        "--num-prompts",
        "4",
        "--no-watch",
        "--json",
    ]
    with BadServer({CHAT: good()}) as server, open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CODE, "run", "--base-url", server.base_url, *flags],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WITHIN_S,
        )
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(read_run(tmp_path).records) == 4


def load(server: BadServer, folder: Path, name: str, *more: str) -> tuple[Result, dict[str, Any]]:
    flags = ["--base-url", server.base_url, "--save-dir", str(folder), *QUICK, "--burstiness", "inf", "--json"]
    found = CliRunner(env={"COLUMNS": "200"}).invoke(load_app, [name, *flags, *more])
    assert isinstance(found.exception, SystemExit), repr(found.exception)
    (saved,) = folder.glob(f"{name}-*.json")
    return found, json.loads(saved.read_text())


def until(count: int, then: Callable[[], None]) -> Answer:
    """Good answers; `then` after so many."""
    left, answer = [count], good()

    async def counting(one: Asked, writer: asyncio.StreamWriter) -> bool:
        kept = await answer(one, writer)
        left[0] -= 1
        if not left[0]:
            then()
        return kept

    return counting


@pytest.mark.slow
@pytest.mark.parametrize(("last", "rows", "why"), [(20, 1, "cannot connect to"), (25, 2, "the server was gone")])
def test_a_sweep_whose_server_goes_away_keeps_its_rates(last: int, rows: int, why: str, tmp_path: Path) -> None:
    with BadServer({}) as server:
        server.routes[CHAT] = until(last, server.close_the_door)
        found, tree = load(server, tmp_path, "sweep", "--rates", "20,40,80", "--seconds", "1", "--warmup-s", "0")
    assert found.exit_code == 2 and f"at 40 requests/s: {why}" in found.output, found.output
    assert [row["rate_rps"] for row in tree["rates"]] == [20, 40][:rows] and why in tree["stopped"]
    assert all((tmp_path / row["report"]).exists() for row in tree["rates"])


@pytest.mark.slow
def test_a_sweep_that_is_stopped_keeps_its_rates(tmp_path: Path) -> None:
    flags = ("--save-dir", str(tmp_path), *QUICK, "--rates", "20,40", "--seconds", "30", "--warmup-s", "0")
    with BadServer({CHAT: good()}) as server, command("sweep", "--base-url", server.base_url, *flags) as run:
        wait_for(lambda: asked(server) > 10, "nothing was sent")
        os.killpg(run.pid, signal.SIGTERM)
        code, told = ended(run)
    assert code == 130 and "at 20 requests/s: interrupted" in told, told
    (saved,) = (json.loads(path.read_text()) for path in tmp_path.glob("sweep-*.json"))
    assert "interrupted" in saved["stopped"] and len(saved["rates"]) == 1


@pytest.mark.slow
def test_a_search_on_a_server_that_refuses_ends_with_its_word(tmp_path: Path) -> None:
    with BadServer({CHAT: refused(401, "who are you?")}) as server:
        found, tree = load(server, tmp_path, "search", "--goodput", "ttft:500", "--start-rate", "50")
    assert found.exit_code == 2 and "capacity not found: the server did not serve" in found.output, found.output
    assert "give --api-key" in found.output and "who are you?" in tree["why"] and tree["runs"] == []


@pytest.mark.slow
def test_a_search_whose_server_goes_away_tells_what_it_knows(tmp_path: Path) -> None:
    with BadServer({}) as server:
        server.routes[CHAT] = until(200, server.close_the_door)
        found, tree = load(server, tmp_path, "search", "--goodput", "ttft:600", "--start-rate", "50")
    assert found.exit_code == 2 and tree["ending"] == "not_served" and tree["capacity_rps"] is None, found.output
    assert len(tree["runs"]) >= 1 and all((tmp_path / run["report"]).exists() for run in tree["runs"])


SWEEP = ("sweep", "--rates", "40,80", "--seconds", "1", "--warmup-s", "0")
SEARCH = ("search", "--goodput", "ttft:600", "--start-rate", "50")


def counting_words(server: BadServer, then: Answer) -> Answer:
    """`/tokenize`, a word a token; `then` once the first load is under way, as the next one is made."""

    async def answer(one: Asked, writer: asyncio.StreamWriter) -> bool:
        if asked(server):
            return await then(one, writer)
        tree = json.loads(one.body)
        text = tree["prompt"] if "prompt" in tree else " ".join(said["content"] for said in tree["messages"])
        return await whole({"count": len(text.split())})(one, writer)

    return answer


async def stops_us(_: Asked, __: asyncio.StreamWriter) -> bool:
    """The answer never comes; the signal does."""
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(3600)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "then", "code", "why"),
    [
        (SWEEP, refused(500, "broken"), 2, "answered 500"),
        (SWEEP, stops_us, 130, "interrupted"),
        (SEARCH, stops_us, 130, "interrupted"),
    ],
)
def test_a_next_load_that_cannot_be_made_costs_no_run(
    flags: tuple[str, ...], then: Answer, code: int, why: str, tmp_path: Path
) -> None:
    with BadServer({CHAT: good()}) as server:
        server.routes[TOKENIZE] = counting_words(server, then)
        page = ("--tokenizer", "endpoint", "--html", str(tmp_path / "page.html"))
        found, tree = load(server, tmp_path, *flags, *page)
    assert found.exit_code == code and why in found.output, found.output
    runs = tree.get("rates") or tree["runs"]
    assert len(runs) == 1 and (tmp_path / runs[0]["report"]).exists() and (tmp_path / "page.html").exists()


def load_at(rate_rps: float, count: int, seed: int) -> RunSpec:
    return RunSpec(Target("http://nowhere"), [job(n, due_s=n / rate_rps) for n in range(count)])


def answered(spec: RunSpec) -> RunResult:
    """Whatever the rate, each after 100 ms."""
    dues_ms = [1e3 * (one.due_s or 0.0) for one in spec.jobs]
    records = [record([due + 100, due + 150], number=n, due_ms=due) for n, due in enumerate(dues_ms)]
    return replace(result(records), spec=spec)


def at_the(number: int, what: Callable[[], None]) -> Callable[[], None]:
    """Does it when it is called for the time of that number."""
    called = 0

    def call() -> None:
        nonlocal called
        called += 1
        if called == number:
            what()

    return call


def fails() -> None:
    raise LoadTestError("no request is due in this time at this rate")


def stopped() -> None:
    signal.raise_signal(signal.SIGTERM)


def stopped_twice() -> None:
    stopped()
    stopped()


def nothing() -> None:
    """As it should be."""


def searched_with(before: Callable[[], None], saving: Callable[[], None]) -> tuple[Searched, list[Made]]:
    """`before` each load is made, and while each run is saved."""
    kept: list[Made] = []

    def spec_at(rate_rps: float, count: int, seed: int) -> RunSpec:
        before()
        return load_at(rate_rps, count, seed)

    def on_run(made: Made) -> None:
        saving()
        kept.append(made)

    goal = Goal(0.9, max_runs=5)
    with Interrupts() as interrupts:
        found = search(spec_at, Slo(ttft_ms=500), goal, answered, on_run=on_run, interrupts=interrupts)
    return found, kept


@pytest.mark.parametrize(
    ("before", "saving", "ending", "runs"),
    [
        (nothing, nothing, Ending.RUNS_SPENT, 5),
        (fails, nothing, Ending.NO_LOAD, 2),
        (stopped, nothing, Ending.INTERRUPTED, 2),
        (nothing, stopped, Ending.INTERRUPTED, 3),
        (nothing, stopped_twice, Ending.INTERRUPTED, 2),
    ],
)
def test_what_goes_wrong_between_two_runs_costs_no_run(
    before: Callable[[], None], saving: Callable[[], None], ending: Ending, runs: int
) -> None:
    found, kept = searched_with(at_the(3, before), at_the(3, saving))
    assert found.ending is ending and len(found.probes) == len(kept) == runs
    assert (ending is Ending.NO_LOAD) == ("could not be made (no request is due" in statement(found))


@pytest.mark.parametrize(("what", "error"), [(fails, LoadTestError), (stopped, KeyboardInterrupt)])
def test_where_there_is_no_run_to_keep_the_error_is_told(what: Callable[[], None], error: type[BaseException]) -> None:
    with pytest.raises(error):
        searched_with(at_the(1, what), nothing)


OK, SHED, AWAY, REFUSED = Outcome.OK, Outcome.SHED, Outcome.NO_CONNECTION, Outcome.REJECTED


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([], ""),
        ([OK] * 20, ""),
        ([SHED] * 19 + [Outcome.TIMED_OUT], ""),
        ([OK] + [REFUSED] * 19, ""),
        ([OK] * 18 + [AWAY] * 2, "gone at the end"),
        ([OK] * 9 + [AWAY] * 9 + [OK] * 2, ""),
        ([REFUSED] * 3, "not one of 3 requests completed: rejected"),
        ([SHED, REFUSED, REFUSED], "not one of 3 requests completed: rejected"),
        ([AWAY], "gone at the end"),
    ],
)
def test_when_a_run_tells_of_no_speed(outcomes: list[Outcome], why: str) -> None:
    found = not_served([record([], outcome) for outcome in outcomes])
    assert (why in found) if why else not found
