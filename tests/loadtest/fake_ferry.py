"""A deployment without engines: Ferry's admin API and /metrics on a port of its own, for whoever asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "the-token"


def replica(name: str, pool: str = "decode", pid: int = 1, running: int = 0) -> dict[str, Any]:
    return {"replica": name, "pool": pool, "role": pool, "state": "ready", "pid": pid, "running": running, "waiting": 0}


class FakeFerry:
    """`replicas` may be changed while it runs; `asked` holds what came, with its body if it had one.

    `metrics` gives status and text.
    """

    def __init__(self, *replicas: dict[str, Any], metrics: Callable[[], tuple[int, str]] = lambda: (404, "")) -> None:
        self.replicas = list(replicas)
        self.metrics = metrics
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._answer(self)

            def do_POST(self) -> None:
                fake._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> FakeFerry:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0))).decode()
        self.asked.append(f"{request.command} {request.path} {body}".strip())
        status, text = self._found(request)
        answer = text.encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def _found(self, request: BaseHTTPRequestHandler) -> tuple[int, str]:
        if request.path == "/metrics":
            return self.metrics()
        if request.path.startswith("/hook"):
            return 200, "noted"
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, '{"detail":"the admin API needs the token of this deployment"}'
        if request.path == "/admin/v1/replicas":
            return 200, json.dumps(self.replicas)
        *_, name, verb = request.path.split("/")
        for one in self.replicas:
            if one["replica"] == name:
                one["state"] = {"drain": "draining", "undrain": "ready"}[verb]
                return 202, json.dumps({"replica": name, "state": one["state"]})
        return 404, '{"detail":"no replica"}'
