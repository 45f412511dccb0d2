"""Ray's door: load workers as Ray tasks, spread over the nodes. They need this package there, as Ferry's images have.

`ray://HOST:PORT` is a Ray client's address, `HOST:PORT` or `auto` that of a cluster of which this machine is a node.
The workers call this process back, so their nodes must be able to open a TCP connection to it.
"""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from loadtest.remote import Doorway, RemoteChild, remote_worker
from loadtest.types import LoadTestError

HEAD_PORT = 10001
REACH_WITHIN_S = 5.0


class RayCrew:
    """A connection to a Ray cluster and the workers that it runs. Ends them when it is left."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._own = not ray.is_initialized()
        self._doorway: Doorway | None = None
        self._tasks: list[Any] = []

    def __enter__(self) -> RayCrew:
        _check_reach(self._address)
        try:
            if self._own:
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise LoadTestError(f"no Ray cluster answers at {self._address}: {error}") from error
        self._doorway = Doorway(_own_host(self._address))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            _cancel(task)
        if self._doorway is not None:
            self._doorway.close()
        if self._own:
            ray.shutdown()

    def nodes(self) -> int:
        """Nodes that can run a worker."""
        return max(1, sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1))

    def hire(self, count: int) -> list[RemoteChild]:
        """So many workers, each on a core of its own. Raises LoadTestError when they do not call in time."""
        assert self._doorway is not None
        task = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(remote_worker)
        found = []
        for _ in range(count):
            running = task.remote(self._doorway.address, self._doorway.key)
            self._tasks.append(running)
            # One after the other: so each pipe is known to be that task's.
            found.append(RemoteChild(self._doorway.next_caller(), partial(_cancel, running)))
        return found


def _head_at(address: str) -> tuple[str, int] | None:
    """Host and port; None for `auto` and the like: Ray knows where that is, or at once that it does not.

    Raises LoadTestError for what can be no address.
    """
    try:
        where = urlsplit(address if "://" in address else f"ray://{address}")
        if where.port is None and "://" not in address:
            return None
        if not where.hostname:
            raise ValueError("it names no host")
    except ValueError as error:
        raise LoadTestError(
            f"--workers: {address} is no address of a Ray cluster: {error}; "
            f"write ray://HOST:{HEAD_PORT}, ray:HOST:PORT or ray:auto"
        ) from error
    return where.hostname, HEAD_PORT if where.port is None else where.port


def _check_reach(address: str) -> None:
    """Ray itself tries for minutes where nobody listens. Raises LoadTestError."""
    head = _head_at(address)
    if head is None:
        return
    try:
        socket.create_connection(head, REACH_WITHIN_S).close()
    except (OSError, UnicodeError) as error:  # a name of a form that none has is a UnicodeError
        raise LoadTestError(f"no Ray cluster answers at {address}: {error}") from error


def _cancel(task: Any) -> None:
    with contextlib.suppress(RayError, ValueError, RuntimeError):  # it has ended, or its cluster has
        ray.cancel(task, force=True)


def _own_host(address: str) -> str:
    """Our address as the cluster sees it: that of the interface on the way there. Nothing is sent."""
    if not address.startswith("ray://"):
        return str(ray.util.get_node_ip_address())
    head = _head_at(address)
    assert head is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(head)
        return str(probe.getsockname()[0])
