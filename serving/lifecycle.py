"""The life of a deployment that this process holds up: start, show how engines load, wait, stop all of it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from serving import preflight, run_state
from serving.app import APP_NAME, Deployed, build, serve_environment
from serving.engine.core import ModelFiles
from serving.errors import EngineStartFailed, FerryError, RayUnavailable
from serving.model_store import Progress, resolve
from serving.run_state import RunState
from serving.settings import Settings
from serving.stop_signals import StopSignals

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

Say = Callable[[str], None]
Bar = Callable[[], contextlib.AbstractContextManager[Progress]]

OBJECT_STORE_BYTES = 128 << 20
POLL_S = 0.25
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 60.0
DRAIN_POLL_S = 1.2
CALL_TIMEOUT_S = 10.0
PLACE_TIMEOUT_S = 600.0
"""For Ray to find room, which may start machines, and for the replicas' imports, beside what engines take to load."""
FAILED_STATES = ("DEPLOY_FAILED", "UNHEALTHY")
LAST_CAUSE = re.compile(r"(?:\w+\.)*(\w+(?:Error|Failed|Exception|Lost)): (.+)")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start and where to leave its traces."""

    settings: Settings
    home: Path

    @property
    def folder(self) -> Path:
        return run_state.run_dir(self.home, self.settings.http.port)


@contextlib.contextmanager
def running(launch: Launch, *, signals: StopSignals, say: Say, bar: Bar) -> Iterator[RunState]:
    """A deployment, ready inside the block and gone after it, however the block ends.

    Raises:
        FerryError: when it cannot start; then nothing is left running.
    """
    deployed = prepare(launch, say=say, bar=bar)
    state = RunState(
        pid=os.getpid(),
        host=launch.settings.http.host,
        port=launch.settings.http.port,
        model=deployed.model.served_name,
        admin_token=deployed.admin_token,
        process_mark=run_state.process_mark(os.getpid()),
        api_key=_api_key(launch.settings),
    )
    run_state.save(launch.folder, state)
    try:
        with _ray(launch, signals, say):
            _deploy(deployed, signals, say)
            _await_ready(state, signals)
            yield state
            say("stopping: running requests finish first (Ctrl-C again stops at once)")
            _drain(say)
    finally:
        run_state.forget(launch.folder)


def prepare(launch: Launch, *, say: Say, bar: Bar) -> Deployed:
    """Everything that can fail before Ray starts."""
    settings = launch.settings
    preflight.check_port(settings.http)
    if settings.ray.address is not None:
        preflight.check_ray_address(settings.ray.address)
    with bar() as progress:
        folder = resolve(settings.model, launch.home, progress)
    on_cpu = runs_on_cpu(settings)
    if on_cpu and settings.ray.address is None:
        for line in preflight.check_memory(settings, folder):
            say(f"  {line}")
    model = ModelFiles(path=folder.path, served_name=settings.served_model_name or folder.name)
    return Deployed(settings=settings, model=model, on_cpu=on_cpu, admin_token=secrets.token_urlsafe(24))


def _api_key(settings: Settings) -> str | None:
    """A key that vLLM's front end will take, if it wants one; what is no list of keys it refuses at its start."""
    keys = settings.gateway.args.get("api_key")
    return str(keys[0]) if isinstance(keys, list) and keys else None


def runs_on_cpu(settings: Settings) -> bool:
    """True when engines run on CPU: said so, or no NVIDIA driver answers."""
    if settings.device != "auto":
        return settings.device == "cpu"
    with warnings.catch_warnings():
        # The package that the user names warns of its own successor, which it wraps.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return True
    return int(pynvml.nvmlDeviceGetCount()) == 0


@contextlib.contextmanager
def _ray(launch: Launch, signals: StopSignals, say: Say) -> Iterator[None]:
    """A Ray cluster with Serve: one started here and stopped after, or a running one that only loses our app.

    Raises:
        RayUnavailable: with Ray's or HAProxy's own words.
    """
    settings = launch.settings
    # HAProxy's socket paths must stay under 97 characters, of which Ray takes 57 for the node's id.
    with tempfile.TemporaryDirectory(prefix="ferry-", ignore_cleanup_errors=True) as folder:
        environment = serve_environment(settings.http, Path(folder))
        os.environ |= environment
        import ray
        from ray import serve

        address = settings.ray.address
        say("starting Ray" if address is None else f"joining Ray at {address}")
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **_init(settings, environment))
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise RayUnavailable(f"Ray does not start: {error}", remedy="see the message") from error
        signals.install()
        try:
            _start_serve(settings)
            yield
        finally:
            if address is None:
                serve.shutdown()
            else:
                serve.delete(APP_NAME)
            ray.shutdown()


def _init(settings: Settings, environment: dict[str, str]) -> dict[str, Any]:
    if settings.ray.address is not None:
        return {"runtime_env": {"env_vars": environment}}
    return {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_cpus": settings.ray.num_cpus,
    }


def _start_serve(settings: Settings) -> None:
    import ray
    from ray import serve

    http, local = settings.http, settings.ray.address is None
    try:
        serve.start(
            http_options={"host": http.host, "port": http.port},
            proxy_location=http.proxy_location or ("HeadOnly" if local else "EveryNode"),
        )
    except ray.exceptions.RayError as error:
        raise RayUnavailable(
            f"Ray Serve does not start: {_last_words(str(error))}", remedy="see the message"
        ) from error


def _last_words(text: str) -> str:
    """What went wrong, out of a traceback that crossed Ray: HAProxy's alerts, else the last exception's message."""
    alerts = [line.rsplit("] : ", 1)[-1] for line in text.splitlines() if line.startswith("[ALERT]")]
    causes = [message for _, message in LAST_CAUSE.findall(text)]
    return "; ".join(alerts) or (causes or text.strip().splitlines())[-1]


def _deploy(deployed: Deployed, signals: StopSignals, say: Say) -> None:
    """Deploy and report each deployment's state as it changes, until all run.

    Raises:
        EngineStartFailed: with the cause that the failed deployment gave, or with what still did not run in the end.
    """
    from ray import serve

    application = build(deployed)
    serve.run_many([serve.RunTarget(application, name=APP_NAME)], wait_for_applications_running=False)
    shown: dict[str, str] = {}
    settings = deployed.settings
    limit_s = PLACE_TIMEOUT_S + max(settings.engine_of(pool).start_timeout_s for pool in settings.pools)
    started_s = time.monotonic()
    while True:
        status = serve.status()
        for name, line in _lines(status):
            if shown.get(name) != line:
                shown[name] = line
                say(f"  {time.monotonic() - started_s:5.0f} s  {name:<12} {line}")
        app = status.applications[APP_NAME]
        if app.status == "RUNNING":
            return
        if app.status in FAILED_STATES:
            raise _failure(status)
        if time.monotonic() - started_s > limit_s:
            raise _overdue(status, limit_s)
        signals.check()
        time.sleep(POLL_S)


def _lines(status: ServeStatus) -> Iterator[tuple[str, str]]:
    for name, deployment in status.applications[APP_NAME].deployments.items():
        counts = ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items())
        yield name, counts or str(deployment.status.value).lower()


def _failure(status: ServeStatus) -> FerryError:
    """The first cause that a deployment gave; Ray wraps it in tracebacks."""
    app = status.applications[APP_NAME]
    messages = [d.message for d in app.deployments.values() if d.status in FAILED_STATES] or [app.message]
    causes = [cause for message in messages for cause in LAST_CAUSE.findall(message)]
    kind, text = causes[-1] if causes else ("", messages[0])
    shown = text if kind in ("EngineStartFailed", "ConfigError", "") else f"{kind}: {text}"
    return EngineStartFailed(f"the deployment did not start: {shown}", remedy="mend the cause and start again")


def _overdue(status: ServeStatus, limit_s: float) -> FerryError:
    """What has not started, as it stands."""
    deployments = status.applications[APP_NAME].deployments
    running = {name for name, one in deployments.items() if one.status == "HEALTHY"}
    pending = "; ".join(f"{name} {line}" for name, line in _lines(status) if name not in running)
    return EngineStartFailed(
        f"the deployment did not start within {limit_s:.0f} s: {pending}",
        remedy="give Ray what the replicas ask for (`ray status` shows it), or raise engine.start_timeout_s",
    )


def _await_ready(state: RunState, signals: StopSignals) -> None:
    """Wait until the endpoint says that it can serve.

    Raises:
        EngineStartFailed: with the endpoint's last reason.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    reason = "no answer"
    while time.monotonic() < deadline_s:
        try:
            answer = httpx.get(f"{state.base_url}/ready", timeout=5.0)
        except httpx.TransportError as error:
            reason = str(error)
        else:
            if answer.status_code == httpx.codes.OK:
                return
            reason = answer.text
        signals.check()
        time.sleep(POLL_S)
    raise EngineStartFailed(
        f"all engines run, but the endpoint is not ready after {READY_TIMEOUT_S:.0f} s: {reason}",
        remedy="read the logs that Ray keeps under its session folder",
    )


def _drain(say: Say) -> None:
    """Let no new request in and wait for those that run, at most `DRAIN_TIMEOUT_S`."""
    from ray import serve

    controller = serve.get_deployment_handle("controller", APP_NAME)
    controller.stop_accepting.remote().result(timeout_s=CALL_TIMEOUT_S)
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    left = 1
    while left and time.monotonic() < deadline_s:
        # Gateways report once a second: wait for a report that is younger than the closing of the doors.
        time.sleep(DRAIN_POLL_S)
        left = controller.status.remote().result(timeout_s=CALL_TIMEOUT_S)["in_flight"]
    if left:
        say(f"{left} requests still run after {DRAIN_TIMEOUT_S:.0f} s; stopping all the same")


def stop(state: RunState, *, say: Say) -> None:
    """Ask a deployment's process to stop, and wait; kill it and its descendants when it does not."""
    try:
        # Looked up before it is compared: psutil signals none but the process that it has looked up.
        process = psutil.Process(state.pid)
        if not state.alive:
            return
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    try:
        process.wait(STOP_TIMEOUT_S)
    except psutil.TimeoutExpired:
        say(f"process {state.pid} does not stop; killing it")
    _, left = psutil.wait_procs(family, timeout=2.0)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
