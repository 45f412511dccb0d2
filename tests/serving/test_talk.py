"""Talking to an endpoint that answers, refuses, breaks off or is not there; each over real HTTP."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from serving import deployment_cli, talk
from serving.errors import ConfigError, EngineLost
from serving.run_state import RunState
from serving.settings import Settings

MODELS = b'{"data": [{"id": "m"}]}'
EVENTS = [{"choices": [{"delta": {"content": word}}]} for word in ("It ", "is ", "Paris.")]
STREAM = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS).encode() + b"data: [DONE]\n\n"


class Endpoint(BaseHTTPRequestHandler):
    """Gives the answers of its server, by path; `Answers`."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer()

    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, Answers)
        server.keys.append(self.headers.get("authorization"))
        status, body, promised = server.answers[self.path]
        self.send_response(status)
        self.send_header("content-length", str(promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Answers(HTTPServer):
    """Answers by path, and the authorization that each request came with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Endpoint)
        self.answers: dict[str, tuple[int, bytes, int]] = {}
        self.keys: list[str | None] = []

    def set(self, path: str, status: int, body: bytes, *, promised_bytes: int | None = None) -> None:
        self.answers[path] = (status, body, len(body) if promised_bytes is None else promised_bytes)

    @property
    def state(self) -> RunState:
        return RunState(pid=1, host="127.0.0.1", port=self.server_port, model="m", admin_token="s")

    @property
    def url(self) -> str:
        return f"{self.state.base_url}/v1"


@contextmanager
def serving(server: Answers) -> Iterator[Answers]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Answers]:
    with serving(Answers()) as server:
        server.set("/v1/models", 200, MODELS)
        server.set("/v1/chat/completions", 200, STREAM)
        yield server


def ask(url: str, *, api_key: str | None = None) -> str:
    """What the terminal shows of one question."""
    out = io.StringIO()
    talk.chat_loop(url, model=None, message="Which?", console=Console(file=out), api_key=api_key)
    return out.getvalue()


def test_an_answer_is_shown_and_a_key_is_sent_where_one_is_needed(endpoint: Answers) -> None:
    assert ask(endpoint.url) == ask(endpoint.url, api_key="k") == "It is Paris.\n"
    assert endpoint.keys == [None, None, "Bearer k", "Bearer k"]


def test_an_endpoint_that_is_not_there_is_told_in_one_line() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(EngineLost, match=f"{url} does not answer: .*refused"):
            ask(url)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": {"message": "a key is needed"}}', "a key is needed"),
        (502, b"<html>bad gateway</html>", "502 Bad Gateway: <html>bad gateway</html>"),
        (500, b'{"error": "Unauthorized"}', "500 Internal Server Error"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(endpoint: Answers, status: int, body: bytes, words: str) -> None:
    endpoint.set("/v1/chat/completions", status, body)
    with pytest.raises(EngineLost, match=words):
        ask(endpoint.url)
    endpoint.set("/v1/models", status, body)
    with pytest.raises(EngineLost, match=f"does not answer: .*{status}"):
        ask(endpoint.url)


def test_a_stream_that_is_cut_shows_what_came_and_then_says_so(
    endpoint: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.set("/v1/chat/completions", 200, STREAM[:60], promised_bytes=len(STREAM))
    with pytest.raises(EngineLost, match=r"does not answer: peer closed .* complete message"):
        talk.chat_loop(endpoint.url, model="m", message="Which?", console=Console())
    assert capsys.readouterr().out == "It \n"


def test_the_admin_api_is_read_in_the_same_way(endpoint: Answers) -> None:
    endpoint.set("/admin/v1/status", 404, b"not Ferry")
    with pytest.raises(ConfigError, match="404 Not Found: not Ferry"):
        talk.admin(endpoint.state, "GET", "/status")
    endpoint.set("/admin/v1/status", 200, b'{"replicas": []}')
    assert talk.admin(endpoint.state, "GET", "/status") == {"replicas": []}
    assert endpoint.keys == ["Bearer s", "Bearer s"]


@pytest.mark.parametrize(
    ("load", "empty"), [({"running": 0, "waiting": 0}, True), ({"running": 0, "waiting": 1}, False), ({}, False)]
)
def test_a_replica_is_empty_only_when_it_is_known_to_be(
    endpoint: Answers, monkeypatch: pytest.MonkeyPatch, load: dict[str, int], empty: bool
) -> None:
    monkeypatch.setattr(talk, "DRAIN_POLL_S", 0.01)
    endpoint.set("/admin/v1/replicas/a/drain", 202, b"{}")
    status = {"replicas": [{"replica": "b", "running": 3, "waiting": 0}, {"replica": "a", **load}]}
    endpoint.set("/admin/v1/status", 200, json.dumps(status).encode())
    assert talk.drain(endpoint.state, "a", deadline_s=0.1) is empty


def test_a_greeting_that_fails_is_a_warning(endpoint: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.set("/v1/chat/completions", 401, b'{"error": {"message": "a key is needed"}}')
    deployment_cli._greet(replace(endpoint.state, api_key="k"), Settings())
    shown = capsys.readouterr().out
    assert "warning: " in shown and "a key is needed" in shown and "-H 'authorization: Bearer KEY'" in shown
    assert endpoint.keys == ["Bearer k"]
