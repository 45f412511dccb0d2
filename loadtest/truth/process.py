"""The truth server as a child process."""

from __future__ import annotations

from typing import Any

from loadtest.processes import Child
from loadtest.truth.config import TruthConfig, TruthLog
from loadtest.truth.server import GET_LOG, truth_main
from loadtest.types import LoadTestError


class TruthServer:
    """Listens on a free port of the loopback address from entering to leaving the `with` block."""

    def __init__(self, config: TruthConfig | None = None) -> None:
        self._config = config or TruthConfig()
        self._port = 0

    def __enter__(self) -> TruthServer:
        self._child = Child(truth_main)
        port: int = self._ask(self._config)
        self._port = port
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    def change(self, config: TruthConfig) -> None:
        """For requests that arrive from now on. Its core and priority stay as they were."""
        self._ask(config)

    def take_log(self) -> TruthLog:
        """What ended since the last call."""
        log: TruthLog = self._ask(GET_LOG)
        return log

    def _ask(self, question: TruthConfig | str) -> Any:
        self._child.send(question)
        try:
            return self._child.recv()
        except EOFError as error:
            raise LoadTestError(f"the truth server died: {self._child.how_it_ended()}") from error
