"""`ferry load` against servers that behave badly: each kind is told, what was seen is saved, and nothing hangs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtest import endpoint
from loadtest.cli import load_app
from loadtest.endpoint import Asker, first_model
from loadtest.results import read_records
from loadtest.types import LoadTestError, Outcome, Target
from tests.loadtest.bad_servers import (
    CHAT,
    METRICS,
    MODELS,
    TOKENIZE,
    Answer,
    BadServer,
    closing,
    drips,
    floods,
    good,
    in_turn,
    raw,
    refused,
    says_nothing,
    streams,
    whole,
)
from tests.loadtest.builders import delta, event

BOUND_S = 30.0  # for what a timeout of 1 s ends; machines are busy
TIMEOUT_S = 1.0
UNFRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
UNFRAMED_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
DEEP = b"[" * 200_000


def load(*arguments: str) -> Result:
    begun_s = time.monotonic()
    found = CliRunner(env={"COLUMNS": "200"}).invoke(load_app, [*arguments])
    assert time.monotonic() - begun_s < BOUND_S, found.output
    assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
    return found


def run(server: BadServer, folder: Path, *more: str) -> Result:
    flags = ["--base-url", server.base_url, "--save-dir", str(folder), "--isl", "5", "--osl", "4"]
    flags += ["--num-prompts", "3", "--max-concurrency", "1", "--timeout-s", str(TIMEOUT_S), "--no-watch"]
    return load("run", *flags, *more)


@dataclass(frozen=True)
class Kind:
    """What a bad answer, between two good ones, is counted as, and what is told of it."""

    answer: Answer
    outcome: Outcome
    told: str


KINDS = {
    "key": Kind(refused(401, "who are you?"), Outcome.REJECTED, "401: give --api-key, or set OPENAI_API_KEY"),
    "forbidden": Kind(refused(403, "not you"), Outcome.REJECTED, "403: give --api-key"),
    "model": Kind(refused(404, "no model x"), Outcome.REJECTED, "is --model right (served are m)"),
    "moved": Kind(raw(b"", 308, more="Location: http://x/\r\n"), Outcome.REJECTED, "308: is the server at another"),
    "cut": Kind(streams(delta(content="a"), end=b""), Outcome.CUT, "after 1 token events"),
    "no SSE": Kind(streams(b"data: {half of an eve\n\n", delta("stop")), Outcome.BAD_BODY, "half of an eve"),
    "nested": Kind(streams(b'data: {"error":' + DEEP + b"\n\n"), Outcome.BAD_BODY, "nested too deep"),
    "no count": Kind(
        streams({"choices": [], "usage": {"completion_tokens": 10**30}}, delta("stop")), Outcome.BAD_BODY, "usage"
    ),
    "no move": Kind(
        streams(b": ferry move mode=kv reason=drain at_token=%s gap_ms=1.2.3\n\n" % (b"9" * 5000), delta("stop")),
        Outcome.EMPTY,
        "no token came",
    ),
    "a page": Kind(raw(b"<html>", kind="text/html"), Outcome.BAD_BODY, "the content type is text/html"),
    "another protocol": Kind(drips(b"SSH-2.0-x\r\n"), Outcome.BAD_HTTP, "not an HTTP/1 status line"),
    "silence": Kind(says_nothing(), Outcome.TIMED_OUT, "no end within 1 s"),
    "a head without end": Kind(drips(b"a", head=b"HTTP/1.1 200 OK\r\nX: "), Outcome.TIMED_OUT, "no end within 1 s"),
    "comments without end": Kind(drips(b": still here\n\n", head=UNFRAMED_STREAM), Outcome.TIMED_OUT, "no end"),
    "tokens without end": Kind(
        floods(UNFRAMED_STREAM, event(delta(content="a")) * 99),
        Outcome.BAD_BODY,
        "longer than 2 MiB (--max-answer-mib)",
    ),
    "a line without end": Kind(floods(UNFRAMED_STREAM), Outcome.BAD_BODY, "longer than 2 MiB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_counted_told_and_harms_no_other_request(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    with BadServer({CHAT: in_turn(good(), kind.answer, good())}) as server:
        told = run(server, tmp_path, "--model", "x", "--max-answer-mib", "2")
    assert told.exit_code in (0, 3) and kind.told in told.output, told.output  # 3: a busy machine
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert report["total"]["outcomes"] == {"ok": 2, kind.outcome.value: 1}
    (records,) = (read_records(path) for path in tmp_path.glob("*.jsonl"))
    assert [one.outcome for one in records] == [Outcome.OK, kind.outcome, Outcome.OK]


@pytest.mark.slow
def test_answers_without_end_are_bounded_together(tmp_path: Path) -> None:
    flood = floods(UNFRAMED_STREAM)
    limits = ["--max-answer-mib", "4096", "--max-answers-mib", "2", "--timeout-s", "20"]
    with BadServer({CHAT: in_turn(good(), flood, flood, flood, good())}) as server:
        told = run(server, tmp_path, "--model", "x", "--num-prompts", "5", "--max-concurrency", "5", *limits)
    assert told.exit_code in (0, 3) and "held more than 2 MiB (--max-answers-mib)" in told.output, told.output
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert report["total"]["outcomes"] == {"ok": 2, Outcome.BAD_BODY.value: 3}


def test_a_run_in_which_nothing_completed_is_no_success(tmp_path: Path) -> None:
    with BadServer({CHAT: refused(401, "who are you?")}) as server:
        told = run(server, tmp_path, "--model", "x")
        assert told.exit_code in (2, 3) and "--api-key" in told.output, told.output
        assert told.exit_code == 3 or "not one of 3 requests completed" in told.output
        late = run(server, tmp_path, "--model", "x", "--warmup-s", "60")
        assert late.exit_code == 3 or (late.exit_code == 2 and "all were due in the warm-up" in late.output)


@pytest.mark.slow
def test_later_turns_bear_what_a_bad_server_said_before(tmp_path: Path) -> None:
    odd = [{"index": [], "function": "f"}, "call", {"id": 7, "function": {"name": 8, "arguments": {}}}]
    with BadServer({CHAT: in_turn(streams(delta(tool_calls=odd), delta("stop")), good())}) as server:
        told = run(server, tmp_path, "--model", "x", "--turns", "3")
    assert told.exit_code in (0, 3) and "3 ok" in told.output, told.output


QUESTIONS = {
    "drips": (drips(head=UNFRAMED), "no whole answer of 127.0.0.1:PORT/v1/models within 1 s"),
    "drips a head": (drips(b"a", head=b"HTTP/1.1 200 OK\r\nX: "), "within 1 s"),
    "silent": (says_nothing(), "within 1 s"),
    "floods": (floods(UNFRAMED), "the answer is longer than 1 MiB"),
    "nested": (raw(DEEP), "did not answer in JSON"),
    "a page": (raw(b"<html>", kind="text/html"), "'<html>': is --base-url that of an OpenAI-compatible server?"),
    "another protocol": (drips(b"SSH-2.0-x\r\n"), "not an HTTP/1 status line"),
    "key": (refused(401, "who are you?"), "who are you?", "give --api-key, or set OPENAI_API_KEY"),
    "missing": (refused(404, "nothing"), "answered 404", "is --base-url right"),
    "moved": (raw(b"", 301, more="Location: https://new/\r\n"), "answered 301: https://new/"),
    "no names": (whole({"data": [{"id": 7}]}), "names no model; give --model"),
    "no list": (whole([1]), "names no model; give --model"),
    "none": (whole({"data": []}), "names no model; give --model"),
    "hangs up": (streams(end=b""), "was closed before the answer's end"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_is_answered_badly_is_told_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, *words = QUESTIONS[name]
    monkeypatch.setattr(endpoint, "MAX_BODY_BYTES", 1 << 20)
    begun_s = time.monotonic()
    with BadServer({MODELS: answer}) as server:
        with pytest.raises(LoadTestError) as found:
            first_model(Target(server.base_url), timeout_s=1.0)
        port = server.base_url.rpartition(":")[2]
    assert time.monotonic() - begun_s < 5
    assert all(word.replace("PORT", port) in str(found.value) for word in words), found.value


def test_a_connection_is_kept_for_questions_and_one_that_died_is_replaced() -> None:
    with BadServer({TOKENIZE: in_turn(*[whole({"count": 1})] * 2, closing(whole({"count": 2})))}) as server:
        asker = Asker(Target(server.base_url))
        counts = [asker.ask("POST", TOKENIZE, {})["count"] for _ in range(5)]
        asker.close()
        assert counts == [1, 1, 2, 2, 2] and len(server.asked) == 5 and server.connections == 3


@pytest.mark.slow
@pytest.mark.parametrize("answer", [drips(head=UNFRAMED), floods(UNFRAMED), raw(DEEP)])
def test_metrics_without_end_hold_up_no_run(answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_BODY_BYTES", 1 << 20)
    monkeypatch.setattr("loadtest.watch.watcher.ANSWER_WITHIN_S", 0.5)
    flags = ["--save-dir", str(tmp_path), "--num-prompts", "2", "--max-concurrency", "1", "--isl", "5", "--osl", "4"]
    with BadServer({CHAT: good(), METRICS: answer}) as server:
        told = load("run", "--base-url", server.base_url, *flags)
    assert told.exit_code in (0, 3) and "2 ok" in told.output, told.output


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refused(401, "no"), "give --admin-token or FERRY_ADMIN_TOKEN"),
        (refused(404, "no"), "is --admin-url, or else --base-url, that of a Ferry gateway?"),
        (raw(b"<html>"), "is --admin-url"),
        (whole({}), "is --admin-url"),
    ],
)
def test_an_admin_api_that_is_none_is_told_before_the_drill(answer: Answer, told: str) -> None:
    with BadServer({"/admin/v1/replicas": answer}) as server:
        found = load("drill", "--base-url", server.base_url, "--do", "1 drain busiest:decode")
        assert found.exit_code == 2 and told in found.output
        assert not any(one.path == CHAT for one in server.asked)


@pytest.mark.parametrize(
    "flags",
    [
        ["--timeout-s", "0"],
        ["--timeout-s", "inf"],
        ["--timeout-s", "nan"],
        ["--idle-timeout-s", "-1"],
        ["--drain-s", "inf"],
        ["--warmup-s", "nan"],
        ["--max-concurrency", "0"],
        ["--max-answer-mib", "0"],
        ["--max-answers-mib", "0"],
        ["--benchmark-duration", "inf"],
        ["--request-rate", "5", "--on-off", "inf:1", "--benchmark-duration", "5"],
        ["--isl", "0"],
        ["--osl", "0"],
        ["--num-prompts", "-1"],
        ["--seed", "-1"],
        ["--save-dir", "/dev/null/x"],
        ["--base-url", "http://127.0.0.1:9/€"],
        ["--base-url", "http://" + "a" * 70],
        ["--base-url", "http://127.0.0.1:99999"],
    ],
)
def test_what_would_never_begin_or_never_end_is_refused_by_its_flag(flags: list[str], tmp_path: Path) -> None:
    found = load("run", "--model", "m", "--base-url", "http://127.0.0.1:9", "--save-dir", str(tmp_path), *flags)
    named = flags[1] if flags[0] == "--base-url" else "--on-off" if "--on-off" in flags else flags[0]
    assert found.exit_code == 2 and named in found.output, found.output


def test_a_bad_line_of_a_trace_is_told_by_its_number_and_the_others_are_sent(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": at_ms, "input_length": 5, "output_length": 2, "hash_ids": []} for at_ms in (0, 10, 20)]
    good_0, good_1, good_2 = map(json.dumps, lines)
    trace.write_text("\n".join([good_0, '{"timestamp": 5, "input_len', good_1, good_2.replace("5", '"many"')]) + "\n")
    with BadServer({CHAT: good()}) as server:
        flags = ("--base-url", server.base_url, "--save-dir", str(tmp_path / "out"), "--model", "x", "--no-watch")
        told = load("run", *flags, "--max-concurrency", "1", "--timeout-s", str(TIMEOUT_S), "--trace", str(trace))
    assert told.exit_code in (0, 3) and "2 ok" in told.output, told.output
    assert f"line 2 of {trace} was left out" in told.output and f"line 4 of {trace} was left out" in told.output
