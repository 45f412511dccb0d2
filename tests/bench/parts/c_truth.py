"""A truth server in C, where its source is at hand: a second opinion on the one of the project."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from parts.children import BenchFailed

from loadtest.truth import TruthConfig, TruthLog, Written

READY_WITHIN_S = 10.0


def source() -> Path | None:
    """The source in the `tools` folder beside the data folder that FERRY_DATA names, if it can be compiled."""
    folder = os.environ.get("FERRY_DATA")
    path = Path(folder) / ".." / "tools" / "truth_server.c" if folder else None
    return path if path is not None and path.is_file() and shutil.which("gcc") else None


class CTruth:
    """The same as TruthServer, but its log has only the first and the last write of each answer."""

    def __init__(self, code: Path, config: TruthConfig) -> None:
        self._code = code
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def __enter__(self) -> CTruth:
        program = f"{self._folder.name}/truth"
        subprocess.run(["gcc", "-O2", "-w", "-o", program, str(self._code), "-lm"], check=True)
        config = self._config
        keys = {"port": self._port, "ttft": config.ttft_ms, "itl": config.gap_ms, "tok": config.tokens}
        arguments = [str(part) for pair in keys.items() for part in pair]
        self._process = subprocess.Popen([program, *arguments], preexec_fn=self._settle)
        until_s = time.perf_counter() + READY_WITHIN_S
        while time.perf_counter() < until_s:
            try:
                self._get("/health")
                return self
            except OSError:
                time.sleep(0.05)
        raise BenchFailed("the C truth server does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def take_log(self) -> TruthLog:
        stats = json.loads(self._get("/__stats"))
        rows = csv.DictReader(self._get("/__log").splitlines())
        written = tuple(
            Written(
                response_id=f"cmpl-{row['id']}",
                status=int(row["status"]),
                received_ns=int(row["t_recv"]),
                token_write_ns=(int(row["t_w1"]), int(row["t_wl"])),
                late_max_ns=int(row["late_max"]),
            )
            for row in rows
        )
        self._get("/__reset")
        return TruthLog(written, cpu_s=stats["cpu"], realtime=self._config.realtime)

    def _settle(self) -> None:
        if self._config.core is not None:
            os.sched_setaffinity(0, {self._config.core})
        if self._config.realtime:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
            except PermissionError:
                return

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.base_url + path, timeout=60) as answer:
            text: str = answer.read().decode()
            return text
