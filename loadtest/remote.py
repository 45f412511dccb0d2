"""Workers on other machines: each calls back over TCP, and then speaks what a local worker speaks over its pipe."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from multiprocessing.connection import Connection as Pipe
from typing import Any

from loadtest.types import LoadTestError
from loadtest.worker import worker_main

CALL_WITHIN_S = 60.0


class Doorway:
    """Where workers call. The key keeps others out: what comes in is unpickled. `close` ends it."""

    def __init__(self, host: str) -> None:
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), authkey=self.key)
        self.address: tuple[str, int] = (host, int(self._listener.address[1]))
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="ferry-doorway")

    def next_caller(self, within_s: float = CALL_WITHIN_S) -> Pipe:
        """Raises LoadTestError when nobody calls in time, or with another key."""
        call = self._threads.submit(self._listener.accept)
        try:
            found: Pipe = call.result(within_s)
        except Late:
            raise LoadTestError(f"a worker did not call {self.address} within {within_s:.0f} s") from None
        except (OSError, EOFError, AuthenticationError) as error:
            raise LoadTestError(f"what called {self.address} is no worker of ours: {error}") from error
        return found

    def close(self) -> None:
        self._listener.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class RemoteChild:
    """As `processes.Child`, for a worker elsewhere. `end()` ends what runs it, whatever state it is in."""

    def __init__(self, pipe: Pipe, end: Callable[[], None]) -> None:
        self.pipe = pipe
        self._end = end

    @property
    def remote(self) -> bool:
        return True

    def send(self, message: Any) -> bool:
        try:
            self.pipe.send(message)
        except OSError:
            return False
        return True

    def recv(self) -> Any:
        """Raises EOFError if the worker is gone."""
        try:
            return self.pipe.recv()
        except OSError as error:
            raise EOFError from error

    def how_it_ended(self) -> str:
        return "its connection broke"

    def kill(self) -> None:
        self._end()

    def stop(self) -> None:
        self.pipe.close()
        self._end()


def remote_worker(address: tuple[str, int], key: bytes) -> None:
    """What runs on the other machine: call, then work."""
    worker_main(Client(address, authkey=key))
