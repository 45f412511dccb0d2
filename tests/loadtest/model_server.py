"""An endpoint whose answers and token counts a test decides, and which remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.loadtest.builders import LAST_CHUNK, chunk, delta, event

Answers = Callable[[dict[str, Any]], list[dict[str, Any]]]
TEMPLATE_TOKENS = 9


def text_of(tree: dict[str, Any]) -> str:
    if "prompt" in tree:
        return str(tree["prompt"])
    return " ".join(str(message["content"]) for message in tree["messages"])


def count(tree: dict[str, Any]) -> int:
    """One token for each word; the template and each tool add theirs."""
    added = TEMPLATE_TOKENS + 11 * len(tree.get("tools", ())) if "messages" in tree else 0
    return len(text_of(tree).split()) + added


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for body, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._answer(200, {"count": count(tree), "tokens": []})
            return
        self.server.asked.append((tree, dict(self.headers.items())))
        events = self.server.answers(tree)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        used = {"choices": [], "usage": {"prompt_tokens": count(tree), "completion_tokens": len(events)}}
        for one in [*events, used, "[DONE]"]:
            self.wfile.write(chunk(event(one)))
        self.wfile.write(LAST_CHUNK)

    def _answer(self, status: int, tree: Any) -> None:
        data = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def says(*words: str) -> Answers:
    return lambda _: [*(delta(content=word) for word in words), delta("stop")]


@contextmanager
def serving(answers: Answers) -> Iterator[ModelServer]:
    with ModelServer(answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
