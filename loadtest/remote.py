"""Workers on other machines: each calls back over TCP, and then speaks what a local worker speaks over its pipe."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from multiprocessing.connection import Connection as Pipe
from queue import Empty, SimpleQueue
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

    def next_caller(self, within_s: float = CALL_WITHIN_S) -> Pipe:
        """Raises LoadTestError when nobody calls in time, or with another key."""
        calls: SimpleQueue[Pipe | Exception] = SimpleQueue()
        # Nothing ends an accept that waits; a thread that is no daemon would keep the whole process from its end.
        threading.Thread(target=self._accept, args=(calls,), name="ferry-doorway", daemon=True).start()
        try:
            found = calls.get(timeout=within_s)
        except Empty:
            raise LoadTestError(f"a worker did not call {self.address} within {within_s:.0f} s") from None
        if isinstance(found, Exception):
            raise LoadTestError(f"what called {self.address} is no worker of ours: {found}") from found
        return found

    def _accept(self, calls: SimpleQueue[Pipe | Exception]) -> None:
        try:
            calls.put(self._listener.accept())
        except (OSError, EOFError, AuthenticationError) as error:
            calls.put(error)

    def close(self) -> None:
        self._listener.close()


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
