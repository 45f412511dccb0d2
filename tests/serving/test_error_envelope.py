"""The error envelope: every body that vLLM, FastAPI or anything else sends, as the client's SDK parses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.gateway.error_envelope import KINDS, ErrorEnvelope, Message, envelope, reshape

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
VLLM = {"error": {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}}
TOO_LONG = "This model's maximum context length is 16 tokens"
NO_MODEL = {"error": {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}}


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("status", "found", "message", "kind", "param", "code"),
    [
        (400, body(VLLM), "bad", "invalid_request_error", None, None),
        (404, body(NO_MODEL), "no such model", "invalid_request_error", "model", "model_not_found"),
        (404, body({"detail": "Not Found"}), "Not Found", "invalid_request_error", None, None),
        (405, body({"detail": "no"}), "no", "invalid_request_error", None, "method_not_allowed"),
        (422, body({"detail": [{"loc": ["x"]}]}), '[{"loc": ["x"]}]', "invalid_request_error", None, None),
        (400, body({"message": TOO_LONG}), TOO_LONG, "invalid_request_error", None, "context_length_exceeded"),
        (401, body({"error": "Unauthorized"}), "Unauthorized", "invalid_request_error", None, "invalid_api_key"),
        (400, body({"object": "error", "message": "old"}), "old", "invalid_request_error", None, None),
        (500, b"Internal Server Error", "Internal Server Error", "server_error", None, "internal_error"),
        (503, body({"error": {"message": ""}}), "error", "server_error", None, "no_capacity"),
        (502, b"", "error", "server_error", None, "internal_error"),
        (418, b"[1]", "[1]", "invalid_request_error", None, None),
        (429, b"null", "None", "rate_limit_error", None, "rate_limit_exceeded"),
        (400, b"\xff\xfe\x00", "", "invalid_request_error", None, None),
    ],
)
def test_bodies_in_openais_shape(
    status: int, found: bytes, message: str, kind: str, param: str | None, code: str | None
) -> None:
    error = json.loads(reshape(status, found, path=OPENAI))["error"]
    assert message in error.pop("message")
    assert error == {"type": kind, "param": param, "code": code}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (599, "api_error"),
        (499, "invalid_request_error"),
    ],
)
def test_bodies_in_anthropics_shape(status: int, kind: str) -> None:
    for path in (ANTHROPIC, f"{ANTHROPIC}/count_tokens"):
        shaped = json.loads(reshape(status, body(VLLM), path=path))
        assert shaped == {"type": "error", "error": {"type": kind, "message": "bad"}}


def test_a_long_message_is_cut() -> None:
    assert len(json.loads(envelope(400, "x" * 100_000, path=OPENAI))["error"]["message"]) == 1501


def check_shape(shaped: bytes, path: str) -> None:
    found = json.loads(shaped, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found["error"]["message"], str)
    if path == ANTHROPIC:
        assert found["type"] == "error" and set(found["error"]) == {"type", "message"}
        return
    assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}
    assert isinstance(found["error"]["type"], str)
    assert all(found["error"][key] is None or isinstance(found["error"][key], str) for key in ("param", "code"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "param", "code", "type"]) | st.text(), inner)
    ),
    max_leaves=8,
)
STATUS = st.sampled_from(sorted(KINDS)) | st.integers(400, 599)
PATH = st.sampled_from([OPENAI, ANTHROPIC])


@given(status=STATUS, found=st.binary(), path=PATH)
@example(status=400, found=b"[" * 100_000, path=OPENAI)
@example(status=400, found=b'"\xed\xa0\x80"', path=OPENAI)
@example(status=400, found=b"1" * 5_000, path=OPENAI)
def test_no_bytes_break_the_shape(status: int, found: bytes, path: str) -> None:
    check_shape(reshape(status, found, path=path), path)


@given(status=STATUS, found=JSON, path=PATH)
@example(status=400, found={"error": {"message": "\ud800"}}, path=OPENAI)
@example(status=400, found={"error": {"message": "x", "param": {"a": 1}}}, path=OPENAI)
@example(status=400, found={"error": {"message": "x", "param": float("nan")}}, path=OPENAI)
def test_no_json_breaks_the_shape(status: int, found: Any, path: str) -> None:
    check_shape(reshape(status, body(found), path=path), path)


async def answer(*messages: Message, path: str = OPENAI, kind: str = "http") -> list[Message]:
    """What a client gets when an app sends these messages."""
    sent: list[Message] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def receive() -> Message:
        raise AssertionError("nothing is received here")

    async def send(message: Message) -> None:
        sent.append(message)

    await ErrorEnvelope(app)({"type": kind, "path": path}, receive, send)
    return sent


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def chunk(data: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_stream_that_succeeds_is_untouched_chunk_by_chunk() -> None:
    messages = [start(200, (b"x", b"y")), chunk(b"data: 1\n\n", True), chunk(b'{"error": 1}', True), chunk(b"")]
    sent = await answer(*messages)
    assert all(got is given for got, given in zip(sent, messages, strict=True))


async def test_an_error_is_answered_whole_with_its_own_headers() -> None:
    whole = body(VLLM)
    headers = ((b"Content-Length", b"999"), (b"content-type", b"text/plain"), (b"retry-after", b"3"))
    sent_start, sent_body = await answer(start(400, *headers), chunk(whole[:9], True), chunk(whole[9:]))
    assert sent_body["body"] == reshape(400, whole, path=OPENAI)
    assert sent_start["status"] == 400
    assert dict(sent_start["headers"]) == {
        b"retry-after": b"3",
        b"content-type": b"application/json",
        b"content-length": str(len(sent_body["body"])).encode(),
    }


async def test_an_error_on_the_messages_path_is_anthropics() -> None:
    _, sent_body = await answer(start(404), chunk(body({"detail": "Not Found"})), path=ANTHROPIC)
    assert json.loads(sent_body["body"])["error"]["type"] == "not_found_error"


async def test_what_is_not_http_passes() -> None:
    message: Message = {"type": "lifespan.startup.complete"}
    assert await answer(message, kind="lifespan") == [message]
