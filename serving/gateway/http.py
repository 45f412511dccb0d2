"""The gateway's HTTP application: vLLM's own OpenAI app behind a gate that opens only the routes Ferry serves."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_type_hints

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving.engine.core import ModelFiles
from serving.errors import ConfigError
from serving.gateway.error_envelope import AsgiApp, ErrorEnvelope, Receive, Scope, Send, envelope
from serving.gateway.move_report import MoveReport
from serving.settings import GatewaySettings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

TASKS = ("generate",)
GENERATION_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
SERVED_ROUTES = GENERATION_ROUTES | {
    "/v1/messages/count_tokens",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/version",
}
RETRY_AFTER_S = 1
# Arguments of vLLM's engines that its front end reads as well.
ENGINES_TOO = {"enable_log_requests": bool}
# vLLM middlewares that touch every chunk of every stream and do nothing that Ferry wants: it measures streams itself.
LEFT_OUT = frozenset({"PrometheusInstrumentatorMiddleware", "ScalingMiddleware"})


def front_end_arguments(model: ModelFiles, settings: GatewaySettings) -> Namespace:
    """vLLM's front-end arguments.

    Raises:
        ConfigError: when `gateway.args` names something that vLLM's front end does not have, or with a value that it
            does not take.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", str(model.path), "--served-model-name", model.served_name])
    chosen: dict[str, Any] = {
        "disable_fastapi_docs": True,
        "enable_auto_tool_choice": settings.tool_call_parser is not None,
        "tool_call_parser": settings.tool_call_parser,
        "chat_template": settings.chat_template,
        "enable_prompt_tokens_details": True,
    }
    arguments.structured_outputs_config.reasoning_parser = settings.reasoning_parser or ""
    given = {name: _checked(name, value) for name, value in settings.args.items()}
    for name, value in (chosen | given).items():
        setattr(arguments, name, value)
    return arguments


def _checked(name: str, value: Any) -> Any:
    """A value of `gateway.args` as vLLM's own field of that name takes it. A single key where a list of keys belongs
    must not pass: each of its letters would be a key."""
    field = f"gateway.args.{name}"
    types = get_type_hints(FrontendArgs) | ENGINES_TOO
    if name not in types:
        near = get_close_matches(name, types, n=1, cutoff=0.8)
        raise ConfigError(
            f"gateway.args: vLLM's front end has no argument {name!r}",
            remedy=f"did you mean `{near[0]}`?"
            if near
            else "use a field of vLLM's FrontendArgs; what is for engines belongs under engine.args",
            field=field,
        )
    try:
        # As JSON: a list of records is what it says there, but nothing else becomes what it is not.
        return TypeAdapter(types[name]).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{field}: {said} (got {value!r})", remedy="change that value", field=field) from None


class Doors:
    """What the gate needs of the gateway: whether it can serve, its metrics, the admin API."""

    def __init__(
        self,
        *,
        wait_until_servable: Callable[[float], Awaitable[bool]],
        not_ready_because: Callable[[], str | None],
        metrics: Callable[[], Awaitable[str]],
        engine_wait_s: float,
        admin: APIRouter,
    ):
        self.wait_until_servable, self.not_ready_because = wait_until_servable, not_ready_because
        self.metrics, self.engine_wait_s, self.admin = metrics, engine_wait_s, admin


async def build(llm: AsyncLLM, arguments: Namespace, doors: Doors) -> AsgiApp:
    """The application of one gateway."""
    app = build_app(arguments, TASKS, llm.model_config)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", None) in SERVED_ROUTES]
    app.user_middleware = [one for one in app.user_middleware if getattr(one.cls, "__name__", "") not in LEFT_OUT]
    app.middleware_stack = None  # vLLM has built one already; this makes the app build its own
    await init_app_state(llm, app.state, arguments, TASKS)
    _add_routes(app, doors)
    return ErrorEnvelope(EngineGate(MoveReport(app, routes=GENERATION_ROUTES), doors))


def _add_routes(app: FastAPI, doors: Doors) -> None:
    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/ready")
    async def ready() -> Response:
        reason = doors.not_ready_because()
        return JSONResponse({"ready": True}) if reason is None else JSONResponse({"detail": reason}, status_code=503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(await doors.metrics(), media_type="text/plain; version=0.0.4")

    app.include_router(doors.admin)


class EngineGate:
    """ASGI middleware: a generation waits at the door while no engine can take it, then gets a 503, not silence."""

    def __init__(self, app: AsgiApp, doors: Doors):
        self._app, self._doors = app, doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in GENERATION_ROUTES and scope["method"] == "POST":
            wait_s = self._doors.engine_wait_s
            if not await self._doors.wait_until_servable(wait_s):
                reason = self._doors.not_ready_because() or f"no engine became ready within {wait_s:.0f} s"
                return await _refuse(scope["path"], reason, send)
        await self._app(scope, receive, send)
        return None


async def _refuse(path: str, message: str, send: Send) -> None:
    body = envelope(503, message, path=path)
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(RETRY_AFTER_S).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
