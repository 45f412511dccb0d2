"""Does things to a deployment: through its admin API, by signals to processes of this machine, hooks and commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import psutil

from loadtest.drill.slowness import Slowness
from loadtest.drill.timeline import BUSIEST, Action, Kind
from loadtest.endpoint import Asker
from loadtest.types import LoadTestError, Target

ADMIN = "/admin/v1"
REPLICAS = "/replicas"
NO_ADMIN = ": is --admin-url, or else --base-url, that of a Ferry gateway?"
DENIED = "\ngive --admin-token or FERRY_ADMIN_TOKEN: `ferry up` keeps it as admin_token in state.json of its run folder"
ANSWER_WITHIN_S = 10.0
COMMAND_WITHIN_S = 120.0
MAX_TOLD_CHARS = 400
MAX_BYTES_PER_CHAR = 4

# "VLLM::EngineCore"; the kernel keeps 15 characters of a name.
CORE_NAME = "EngineCor"
# What Ray names the processes of replicas. A pid from a status is that of another machine's process, unless it fits.
HOST_PREFIX = "ray::"

_SIGNALS = {
    Kind.KILL: signal.SIGKILL,
    Kind.KILL_HOST: signal.SIGKILL,
    Kind.TAKE: signal.SIGKILL,
    Kind.STOP: signal.SIGSTOP,
    Kind.CONTINUE: signal.SIGCONT,
}


@dataclass(frozen=True, slots=True)
class Deed:
    """What came of an action. `replica`: the one that was meant, where one was."""

    ok: bool
    told: str
    replica: str = ""


class Hands:
    """Never raises for what goes wrong with a deed: a drill goes on, and its report tells of the failure."""

    def __init__(self, admin: Target, slow: Callable[[Slowness], bool] | None = None) -> None:
        """`admin`: where the admin API is, with its token among the headers. `slow`: tells the relay of a network."""
        self._admin, self._slow = admin, slow

    def do(self, action: Action) -> Deed:
        replica = ""
        try:
            if action.names_replica:
                replica = self._replica_of(action.subject)
            match action.kind:
                case Kind.RUN:
                    return _run(action.subject)
                case Kind.POST:
                    return _post(action.subject)
                case Kind.SLOW:
                    there = self._slow is not None and self._slow(action.slowness)
                    return Deed(there, "the relay was told" if there else "there is no relay, or it has ended")
                case Kind.DRAIN | Kind.UNDRAIN:
                    return self._tell(replica, action.kind.value)
                case Kind.NOTICE:
                    return self._tell(replica, Kind.DRAIN.value, {"deadline_s": action.lead_s})
                case Kind.TAKE if replica and replica not in (str(one["replica"]) for one in self.replicas()):
                    return Deed(True, "it had left already", replica)
                case _:
                    return _signal(action.kind, self._processes(action, replica), replica)
        except (LoadTestError, psutil.Error, OSError) as error:
            return Deed(False, str(error) or type(error).__name__, replica)
        except Exception as error:  # of a kind that nobody thought of: the actions that follow must not be lost with it
            return Deed(False, f"{type(error).__name__}: {error}", replica)

    def replicas(self) -> list[dict[str, Any]]:
        """As the admin API shows them. Raises LoadTestError."""
        found = self._ask("GET", REPLICAS)
        if not isinstance(found, list) or not all(isinstance(one, dict) and "replica" in one for one in found):
            raise LoadTestError(f"{ADMIN}/replicas did not answer with a list of replicas{NO_ADMIN}")
        return found

    def _tell(self, replica: str, verb: str, body: object = None) -> Deed:
        told = self._ask("POST", f"/replicas/{quote(replica, safe='')}/{verb}", body)
        return Deed(True, json.dumps(told)[:MAX_TOLD_CHARS], replica)

    def _replica_of(self, subject: str) -> str:
        if not subject.startswith(BUSIEST):
            return subject
        pool = subject.removeprefix(BUSIEST)
        serving = [one for one in self.replicas() if one.get("pool") == pool and one.get("state") == "ready"]
        if not serving:
            raise LoadTestError(f"no replica of pool {pool!r} is ready")
        # Of equals the first by name, so that a drill can be repeated.
        busiest = min(serving, key=lambda one: (-load_of(one), str(one["replica"])))
        return str(busiest["replica"])

    def _processes(self, action: Action, replica: str) -> list[psutil.Process]:
        """Looked up before any of them gets a signal."""
        if action.pid is not None:
            return [psutil.Process(action.pid)]
        known = {str(one["replica"]): one for one in self.replicas()}
        if replica not in known:
            raise LoadTestError(f"no replica {replica}; there are {', '.join(sorted(known)) or 'none'}")
        pid = known[replica].get("pid")
        if not isinstance(pid, int):
            raise LoadTestError(f"{replica} does not tell its process: its pid is {json.dumps(pid)}")
        host = psutil.Process(pid)
        if not any(part.startswith(HOST_PREFIX) for part in host.cmdline()[:1]):
            raise LoadTestError(f"process {host.pid} of this machine is no replica: {replica} runs on another one")
        family = [host, *host.children(recursive=True)]
        if action.kind is Kind.KILL_HOST:
            return family
        cores = [process for process in family[1:] if CORE_NAME in process.name()]
        if not cores:
            raise LoadTestError(f"{replica} has no engine core among its processes")
        return cores

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        asker = Asker(self._admin, ANSWER_WITHIN_S)
        try:
            question = None if body is None else json.dumps(body)
            status, answer = asker.fetch(method, f"{ADMIN}{path}", question)
        finally:
            asker.close()
        if not 200 <= status < 300:
            told = answer[:MAX_TOLD_CHARS].decode(errors="replace")
            remedy = DENIED if status in (401, 403) else NO_ADMIN if status == 404 and path == REPLICAS else ""
            raise LoadTestError(f"{ADMIN}{path} answered {status}: {told}{remedy}")
        try:
            return json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise LoadTestError(f"{ADMIN}{path} answered with what is no JSON{NO_ADMIN}") from error


def load_of(replica: dict[str, Any]) -> float:
    """Requests that a replica has, as far as the admin API tells."""
    return sum(float(replica.get(key) or 0) for key in ("running", "waiting"))


def _signal(kind: Kind, processes: Sequence[psutil.Process], replica: str) -> Deed:
    number, reached = _SIGNALS[kind], []
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # its parent's end took it along
        reached.append(str(process.pid))
    if not reached:
        return Deed(False, "every process of it was gone already", replica)
    return Deed(True, f"{number.name} to process {', '.join(reached)}", replica)


def _post(url: str) -> Deed:
    parts = urlsplit(url)
    asker = Asker(Target(f"{parts.scheme}://{parts.netloc}"), ANSWER_WITHIN_S)
    try:
        status, answer = asker.fetch("POST", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", "{}")
    finally:
        asker.close()
    told = answer[:MAX_TOLD_CHARS].decode(errors="replace").strip()
    return Deed(200 <= status < 300, f"status {status}{f': {told}' if told else ''}")


def _run(command: str) -> Deed:
    """The user's own words, for the shell. What they leave in the background is not waited for.

    It would hold a pipe open, so the output goes to a file; and that is read without moving, since it may write on.
    """
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                timeout=COMMAND_WITHIN_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Deed(False, f"not done within {COMMAND_WITHIN_S:.0f} s")
        told = os.pread(output.fileno(), MAX_BYTES_PER_CHAR * MAX_TOLD_CHARS, 0)
    said = told.decode(errors="replace").strip()[:MAX_TOLD_CHARS]
    return Deed(done.returncode == 0, f"exit code {done.returncode}{f': {said}' if said else ''}")
