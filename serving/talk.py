"""Talking to a running deployment over HTTP: a conversation, and its status as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from serving.errors import ConfigError, EngineLost
from serving.run_state import RunState

TIMEOUT = httpx.Timeout(10.0, read=120.0)
DRAIN_POLL_S = 0.6
DATA = "data: "
END = "[DONE]"
MOST_WORDS = 200
STATES = {"ready": "green", "starting": "yellow", "draining": "magenta"}


def admin(state: RunState, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One call of the admin API.

    Raises:
        ConfigError: when it names something that is not there.
        EngineLost: when the endpoint does not answer.
    """
    with _told_as_lost(state.base_url, remedy="read its log, or restart it"):
        answer = httpx.request(
            method,
            f"{state.base_url}/admin/v1{path}",
            headers=_bearer(state.admin_token),
            json=body,
            timeout=TIMEOUT,
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise ConfigError(_words(answer), remedy="`ferry status` lists replicas")
        answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


@contextmanager
def _told_as_lost(url: str, *, remedy: str) -> Iterator[None]:
    """Whatever goes wrong on the way to an endpoint, as an error of ours."""
    try:
        yield
    except httpx.HTTPError as error:
        said = str(error) or type(error).__name__  # timeouts say nothing
        raise EngineLost(f"{url} does not answer: {said}", remedy=remedy) from error


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def _words(answer: httpx.Response) -> str:
    """What a refusal says, in OpenAI's shape or in any other."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}: {answer.text[:MOST_WORDS]}"


def drain(state: RunState, replica_id: str, *, deadline_s: float) -> bool:
    """Drain a replica and wait until it carries nothing; False when it still does at the deadline."""
    admin(state, "POST", f"/replicas/{replica_id}/drain", {"deadline_s": deadline_s})
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        # Engines report twice a second: let a report come that is younger than the drain.
        time.sleep(DRAIN_POLL_S)
        replicas = admin(state, "GET", "/status")["replicas"]
        # Until the controller is linked to it, nobody knows its load.
        carried = [r.get("running", 1) + r.get("waiting", 0) for r in replicas if r["replica"] == replica_id]
        if not any(carried):
            return True
    return False


def fetch_status(state: RunState) -> dict[str, Any]:
    """The cluster as its controller sees it."""
    status = admin(state, "GET", "/status")
    return {"endpoint": f"{state.base_url}/v1", "model": state.model, **status}


def status_table(status: dict[str, Any]) -> Table:
    """One row per engine replica."""
    title = f"{status['model']} on {status['endpoint']} · {len(status['gateways'])} gateway(s)"
    table = Table(title=title, title_justify="left")
    for heading in ("pool", "role", "replica", "state", "running", "waiting", "KV use", "KV blocks"):
        table.add_column(heading, justify="right" if heading[0] in "rwK" and heading != "role" else "left")
    for replica in status["replicas"]:
        colour = STATES.get(replica["state"], "red")
        table.add_row(
            replica["pool"],
            replica["role"],
            replica["replica"],
            f"[{colour}]{replica['state']}[/]",
            str(replica.get("running", "?")),
            str(replica.get("waiting", "?")),
            f"{replica.get('kv_usage', 0):.1%}",
            f"{replica['kv_blocks']} x {replica['block_size_tokens']}",
        )
    return table


def chat_loop(
    base_url: str,
    *,
    model: str | None,
    message: str | None,
    console: Console,
    max_tokens: int | None = None,
    api_key: str | None = None,
) -> None:
    """A conversation until an empty line or Ctrl-D; with `message`, one exchange.

    Raises:
        EngineLost: when the endpoint does not answer, or not to the end.
    """
    with (
        _told_as_lost(base_url, remedy="try again; `ferry status` tells how a deployment of Ferry's is"),
        httpx.Client(base_url=base_url, timeout=TIMEOUT, headers=_bearer(api_key)) as client,
    ):
        name = model or client.get("/models").raise_for_status().json()["data"][0]["id"]
        history: list[dict[str, str]] = []
        while text := message or _ask(console):
            history.append({"role": "user", "content": text})
            answer = ""
            try:
                for piece in stream_chat(client, name, history, max_tokens=max_tokens):
                    answer += piece
                    console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            finally:
                console.print()  # an error message does not go on in the middle of the line
            history.append({"role": "assistant", "content": answer})
            if message:
                return


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]you:[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def stream_chat(
    client: httpx.Client, model: str, messages: list[dict[str, str]], *, max_tokens: int | None = None
) -> Iterator[str]:
    """Pieces of the most likely answer as they arrive; without `max_tokens`, as long as the model allows.

    Raises:
        EngineLost: with the server's words when it refuses or the stream reports an error.
    """
    request: dict[str, Any] = {"model": model, "messages": messages, "stream": True, "temperature": 0}
    if max_tokens is not None:
        request["max_tokens"] = max_tokens
    with client.stream("POST", "/chat/completions", json=request) as answer:
        if answer.is_error:
            answer.read()
            raise EngineLost(_words(answer), remedy="change the request")
        for line in answer.iter_lines():
            if not line.startswith(DATA) or line == DATA + END:
                continue
            event = json.loads(line.removeprefix(DATA))
            if "error" in event:
                raise EngineLost(event["error"]["message"], remedy="try again")
            yield from (choice["delta"].get("content") or "" for choice in event["choices"])
