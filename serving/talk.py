"""Talking to a running deployment over HTTP: a conversation, and its status as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from serving.errors import EngineLost
from serving.run_state import RunState

TIMEOUT = httpx.Timeout(10.0, read=120.0)
DATA = "data: "
END = "[DONE]"
STATES = {"ready": "green", "starting": "yellow", "draining": "magenta"}


def fetch_status(state: RunState) -> dict[str, Any]:
    """The cluster as its controller sees it.

    Raises:
        EngineLost: when the endpoint does not answer.
    """
    headers = {"authorization": f"Bearer {state.admin_token}"}
    try:
        answer = httpx.get(f"{state.base_url}/admin/v1/status", headers=headers, timeout=TIMEOUT)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise EngineLost(f"{state.base_url} does not answer: {error}", remedy="read its log, or restart it") from error
    status: dict[str, Any] = answer.json()
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


def chat_loop(base_url: str, *, model: str | None, message: str | None, console: Console) -> None:
    """A conversation until an empty line or Ctrl-D; with `message`, one exchange."""
    with httpx.Client(base_url=base_url, timeout=TIMEOUT) as client:
        name = model or client.get("/models").raise_for_status().json()["data"][0]["id"]
        history: list[dict[str, str]] = []
        while text := message or _ask(console):
            history.append({"role": "user", "content": text})
            answer = ""
            for piece in stream_chat(client, name, history):
                answer += piece
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            console.print()
            history.append({"role": "assistant", "content": answer})
            if message:
                return


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]you:[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def stream_chat(client: httpx.Client, model: str, messages: list[dict[str, str]]) -> Iterator[str]:
    """Pieces of the most likely answer as they arrive.

    Raises:
        EngineLost: with the server's words when it refuses or the stream reports an error.
    """
    request = {"model": model, "messages": messages, "stream": True, "temperature": 0}
    with client.stream("POST", "/chat/completions", json=request) as answer:
        if answer.is_error:
            raise EngineLost(json.loads(answer.read())["error"]["message"], remedy="change the request")
        for line in answer.iter_lines():
            if not line.startswith(DATA) or line == DATA + END:
                continue
            event = json.loads(line.removeprefix(DATA))
            if "error" in event:
                raise EngineLost(event["error"]["message"], remedy="try again")
            yield from (choice["delta"].get("content") or "" for choice in event["choices"])
