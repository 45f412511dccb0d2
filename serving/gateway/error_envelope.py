"""Every error in the shape that its client's SDK parses: OpenAI's, or Anthropic's on /v1/messages.

vLLM answers with its own (`code` is a number, `type` a class name; some paths send FastAPI's `detail`). OpenAI's
schema wants `code` and `param` as string or null: https://platform.openai.com/docs/api-reference (schema `Error`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# HTTP status → (OpenAI type, OpenAI code, Anthropic type).
KINDS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "invalid_request_error"),
    401: ("invalid_request_error", "invalid_api_key", "authentication_error"),
    403: ("invalid_request_error", "permission_denied", "permission_error"),
    404: ("invalid_request_error", None, "not_found_error"),
    405: ("invalid_request_error", "method_not_allowed", "invalid_request_error"),
    408: ("timeout", "timeout", "api_error"),
    413: ("invalid_request_error", "request_too_large", "request_too_large"),
    422: ("invalid_request_error", None, "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
    500: ("server_error", "internal_error", "api_error"),
    501: ("invalid_request_error", "not_supported", "invalid_request_error"),
    503: ("server_error", "no_capacity", "overloaded_error"),
}
MESSAGE_LIMIT = 1_500


def envelope(status: int, message: str, *, path: str, param: str | None = None) -> bytes:
    """The JSON body of an error answer."""
    kind, code, anthropic_kind = KINDS.get(status, KINDS[500] if status >= 500 else KINDS[400])
    message = message if len(message) <= MESSAGE_LIMIT else message[:MESSAGE_LIMIT] + "…"
    if path.startswith("/v1/messages"):
        body: dict[str, Any] = {"type": "error", "error": {"type": anthropic_kind, "message": message}}
    else:
        if status == 404 and param == "model":
            code = "model_not_found"
        elif status in (400, 422) and "maximum context length" in message:
            code = "context_length_exceeded"
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")  # a lone surrogate is no UTF-8


def reshape(status: int, body: bytes, *, path: str) -> bytes:
    """An error body of vLLM or FastAPI, in the client's shape. Text that is no JSON becomes the message."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return envelope(status, body.decode(errors="replace") or "error", path=path)
    if not isinstance(found, dict):
        return envelope(status, str(found), path=path)
    error = found.get("error", found)
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or "error"
        param = error.get("param")
        return envelope(status, _text(message), path=path, param=param if isinstance(param, str) else None)
    return envelope(status, _text(error), path=path)


def _text(message: Any) -> str:
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)


class ErrorEnvelope:
    """ASGI middleware: reshapes answers of status 400 and above; all others pass untouched, chunk by chunk."""

    def __init__(self, app: AsgiApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        await self._app(scope, receive, _Reshaping(scope["path"], send))
        return None


class _Reshaping:
    """The `send` of one request. Holds an error's body back until it is whole."""

    def __init__(self, path: str, send: Send):
        self._path, self._send = path, send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        body = reshape(start["status"], self._body, path=self._path)
        dropped = (b"content-length", b"content-type")
        headers = [(name, value) for name, value in start.get("headers", ()) if name.lower() not in dropped]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
