"""How tests start, ask and stop real deployments: Ray Serve, vLLM on CPU, KV over NIXL."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from serving.model_store import default_home

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("FERRY_HOME") or default_home())
# Part of "VLLM::EngineCore": psutil now and then tells no more than the 15 characters that the kernel keeps of a name.
CORE_NAME = "EngineCor"
UP_TIMEOUT_S = 280


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ferry(*arguments: str, timeout_s: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def config_file(folder: Path, **changes: Any) -> Path:
    """configs/local.yaml with changes, by top-level key; mappings are merged one level deep."""
    tree = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    for key, value in changes.items():
        tree[key] = (
            {**tree[key], **value} if isinstance(value, Mapping) and key in ("http", "engine", "gateway") else value
        )
    path = folder / "ferry.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A running Ferry."""

    port: int
    model: str = "smollm2-135m"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _status_url(self) -> str:
        return f"{self.base_url}/admin/v1/status"

    @property
    def _admin_headers(self) -> dict[str, str]:
        state = json.loads((HOME / "run" / str(self.port) / "state.json").read_text())
        return {"authorization": f"Bearer {state['admin_token']}"}

    def status(self) -> dict[str, Any]:
        found = ferry("status", "--json", "--port", str(self.port))
        assert found.returncode == 0, found.stdout + found.stderr
        return dict(json.loads(found.stdout))

    def admin_status(self, client: httpx.Client) -> list[dict[str, Any]]:
        """The replicas, without the cost of a process."""
        return list(client.get(self._status_url, headers=self._admin_headers).json()["replicas"])

    async def replicas_now(self, client: httpx.AsyncClient) -> list[dict[str, Any]]:
        """As `admin_status`, between other requests of an event loop."""
        return list((await client.get(self._status_url, headers=self._admin_headers)).json()["replicas"])

    def busy(self) -> list[dict[str, Any]]:
        """Replicas that run, queue or hold something, by their last report (twice a second)."""
        with httpx.Client(timeout=10) as client:
            return [r for r in self.admin_status(client) if r["running"] or r["waiting"] or r["kv_usage"]]

    def idle_within(self, timeout_s: float) -> list[dict[str, Any]]:
        """Wait until no engine is busy; returns those that still are."""
        return self._poll(timeout_s, until=lambda busy: not busy)

    def busy_within(self, timeout_s: float) -> list[dict[str, Any]]:
        """Wait until some engine is busy; returns those that are."""
        return self._poll(timeout_s, until=bool)

    def _poll(self, timeout_s: float, until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        deadline_s = time.monotonic() + timeout_s
        while not until(busy := self.busy()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return busy

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a sample over all its series that have these labels."""
        lines = httpx.get(f"{self.base_url}/metrics", timeout=10).text.splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith((name + "{", name + " ")) and all(want in line for want in wanted)
        )


def start(path: Path, port: int, *arguments: str) -> Deployment:
    up = ferry("up", "--config", str(path), "--detach", *arguments, timeout_s=UP_TIMEOUT_S, FERRY_HTTP__PORT=str(port))
    assert up.returncode == 0, up.stdout + up.stderr
    return Deployment(port=port)


def stop(port: int) -> None:
    ferry("down", "--port", str(port), timeout_s=120)
