"""What a running deployment leaves on disk, so that other commands find it: one folder per port.

`state.json` holds the process, the endpoint and the admin token (mode 0600); beside it lie the log of a detached
start and HAProxy's files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from serving.errors import ConfigError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A deployment that `ferry up` started. `pid` is the process that holds it up."""

    pid: int
    host: str
    port: int
    model: str
    admin_token: str
    answers: bool = False
    """The first question is behind it. A deployment that did not answer it serves all the same, with a warning."""
    process_mark: str | None = None
    """`process_mark` of `pid`: after a crash or a restart of the machine the id may be another program's. None where
    an older Ferry wrote the file."""
    api_key: str | None = None
    """A key that the endpoint wants to see, where it wants one."""

    @property
    def base_url(self) -> str:
        """URL of the endpoint as seen from this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def alive(self) -> bool:
        if self.process_mark is None:
            return psutil.pid_exists(self.pid)
        return self.process_mark == process_mark(self.pid)


def process_mark(pid: int) -> str | None:
    """What tells a process from all others that ever have its id: this boot of the machine, and the clock tick of it at
    which the process began. The time of day would not do: it may be set meanwhile. None when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the second field is the name in brackets, which may hold anything; the 22nd is the start.
    start_ticks = stat.rpartition(")")[2].split()[19]
    return f"{BOOT_ID.read_text().strip()} {start_ticks}"


def run_dir(home: Path, port: int) -> Path:
    """Folder of the deployment on `port`, made if needed."""
    folder = home / "run" / str(port)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(folder: Path, state: RunState) -> None:
    """Write the state whole or not at all."""
    partial = folder / "state.json.partial"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(state), file)
    partial.replace(folder / "state.json")


def forget(folder: Path) -> None:
    (folder / "state.json").unlink(missing_ok=True)


def read(folder: Path) -> RunState | None:
    """The state in a folder, or None when nothing runs there."""
    try:
        return RunState(**json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def find(home: Path, port: int | None) -> RunState:
    """The running deployment on `port`; without a port, the only one there is.

    Raises:
        ConfigError: when there is none, or more than one to choose from.
    """
    folders = [home / "run" / str(port)] if port is not None else sorted((home / "run").glob("*"))
    running = [state for folder in folders if (state := read(folder)) is not None and state.alive]
    if not running:
        where = f" on port {port}" if port is not None else ""
        raise ConfigError(f"no Ferry runs here{where}", remedy="start one with `ferry up`", field="port")
    if len(running) > 1:
        ports = ", ".join(str(state.port) for state in running)
        raise ConfigError(f"several run here: ports {ports}", remedy="choose one with --port", field="port")
    return running[0]
