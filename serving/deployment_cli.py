"""`ferry up`, `down`, `status`, `drain`, `undrain`, `chat`: start, look at, talk to and stop a deployment."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from serving import detach, run_state, talk
from serving.errors import FerryError
from serving.lifecycle import Launch, running, stop
from serving.model_cli import errors_as_exit_codes, progress_bar
from serving.model_store import default_home
from serving.run_state import RunState
from serving.settings import Settings, load
from serving.stop_signals import StopSignals
from serving.talk import chat_loop, fetch_status, status_table

deployment_app = typer.Typer()
console = Console()

QUESTION = "What is the capital of France?"
# A small model may ramble on; nobody who starts a deployment waits for more than a few words.
GREETING_TOKENS = 32

Home = Annotated[
    Path, typer.Option(envvar="FERRY_HOME", help="Where models and run state are kept.", default_factory=default_home)
]
Port = Annotated[int | None, typer.Option(help="Port of the deployment; needed when several run.")]


def say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@deployment_app.command()
def up(
    home: Home,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML.", show_default="defaults")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Pools, engines and model of a plan.yaml (`ferry plan -o`).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Built-in name, folder or hub id; overrides the file.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides the file.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; overrides the file.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto or host:port.")] = None,
    detached: Annotated[bool, typer.Option("--detach", help="Return when it answers; `ferry down` stops it.")] = False,
    timeout_s: Annotated[float, typer.Option(help="With --detach: how long to wait for its answer.")] = 900.0,
) -> None:
    """Start Ferry: engines, gateway and endpoint. Ctrl-C drains and stops all that was started."""
    overrides = {"MODEL": model, "HTTP__HOST": host, "HTTP__PORT": port, "RAY__ADDRESS": ray_address}
    given = {f"FERRY_{name}": str(value) for name, value in overrides.items() if value is not None}
    with errors_as_exit_codes():
        settings = load(config, os.environ | given, plan=plan)
        launch = Launch(settings=settings, home=home)
        if detached:
            os.environ |= given | {"FERRY_HOME": str(home)}
            files = {"--config": config, "--plan": plan}
            arguments = [word for flag, path in files.items() if path is not None for word in (flag, str(path))]
            state = detach.start(arguments, launch.folder, timeout_s=timeout_s, say=say)
            say(f"in the background as process {state.pid}; log {launch.folder / 'log'}; stop it with `ferry down`")
            return
        signals = StopSignals()
        with running(launch, signals=signals, say=say, bar=progress_bar) as state:
            _greet(state, settings)
            run_state.save(launch.folder, replace(state, answers=True))
            signals.wait()


@deployment_app.command()
def down(home: Home, port: Port = None) -> None:
    """Stop the deployment on this machine; its running requests finish first."""
    with errors_as_exit_codes():
        state = run_state.find(home, port)
        stop(state, say=say)
        run_state.forget(run_state.run_dir(home, state.port))
        say(f"stopped {state.base_url}")


@deployment_app.command()
def status(
    home: Home, port: Port = None, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Show pools, replicas, their state, KV use, running and waiting requests."""
    with errors_as_exit_codes():
        found: dict[str, Any] = fetch_status(run_state.find(home, port))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            console.print(status_table(found))


@deployment_app.command()
def drain(
    replica: Annotated[str, typer.Argument(help="Name from `ferry status`.")],
    home: Home,
    port: Port = None,
    deadline_s: Annotated[float, typer.Option(help="By when it must be empty, in seconds from now.", min=0)] = 60.0,
) -> None:
    """Move all contexts away from a replica, KV and all, and give it no new ones.

    What is left there a second before the deadline starts anew elsewhere, its tokens computed again. Exit code 1 when
    requests still run there at the deadline, as they do where no other replica can take them.
    """
    with errors_as_exit_codes():
        if not talk.drain(run_state.find(home, port), replica, deadline_s=deadline_s):
            say(f"{replica} still runs requests after {deadline_s:.0f} s; it gets no new ones")
            raise typer.Exit(1)
        say(f"{replica} is empty; `ferry undrain {replica}` lets it serve again")


@deployment_app.command()
def undrain(
    replica: Annotated[str, typer.Argument(help="Name from `ferry status`.")], home: Home, port: Port = None
) -> None:
    """Let a drained replica serve again."""
    with errors_as_exit_codes():
        talk.admin(run_state.find(home, port), "POST", f"/replicas/{replica}/undrain")
        say(f"{replica} serves again")


@deployment_app.command()
def chat(
    home: Home,
    message: Annotated[str | None, typer.Argument(help="One message; without it, a conversation.")] = None,
    port: Port = None,
    base_url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible endpoint, ending in /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name; without it, the first that is served.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key that the endpoint of --base-url wants.")] = None,
) -> None:
    """Talk to the model in the terminal."""
    with errors_as_exit_codes():
        if base_url is None:
            state = run_state.find(home, port)
            base_url, api_key = f"{state.base_url}/v1", api_key or state.api_key
        chat_loop(base_url, model=model, message=message, console=console, api_key=api_key)


def _greet(state: RunState, settings: Settings) -> None:
    """Show that it works, with a real answer, and how to talk to it."""
    url = f"{state.base_url}/v1"
    engines = ", ".join(f"{pool.replicas} {name}" for name, pool in settings.pools.items())
    body = {"model": state.model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "stream": True}
    say(f"\nFerry serves {state.model} on {url} ({engines})\n")
    say(f"> {QUESTION}")
    try:
        chat_loop(
            url,
            model=state.model,
            message=QUESTION,
            console=console,
            max_tokens=GREETING_TOKENS,
            api_key=state.api_key,
        )
    except FerryError as error:
        say(f"  warning: this question was not answered, though the endpoint is ready: {error.message}")
    say(f"\n  curl -N {url}/chat/completions -H 'content-type: application/json' \\")
    if state.api_key is not None:
        say("       -H 'authorization: Bearer KEY' \\")
    say(f"       -d '{json.dumps(body)}'")
    say("  ferry chat        talk in the terminal")
    say("  ferry status      pools, replicas, load\n")
