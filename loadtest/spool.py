"""Finished exchanges wait here for the end of the run: in memory at first, beyond some megabytes in a nameless file."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import IO

from loadtest.types import Exchange

BATCH_BYTES = 1 << 20
IN_MEMORY_BYTES = 16 << 20

_as_tuple = attrgetter(*(field.name for field in fields(Exchange)))


class Spool:
    """Takes exchanges quickly; gives all of them back once, in no promised order.

    A thread of its own writes the file, so that a slow disk holds nothing up. Where writing fails (a full disk) the
    exchanges stay in memory, and `error` says why.
    """

    def __init__(self, folder: Path | None = None, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._folder = folder
        self._in_memory_bytes = in_memory_bytes
        self._pickles: list[bytes] = []
        self._pickled_bytes = 0
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._writing: deque[tuple[bytes, Future[None]]] = deque()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._file: io.FileIO | None = None
        self._whole_bytes = 0  # of the file, from its begin, known to be good
        self.error = ""

    def add(self, exchange: Exchange) -> None:
        pickled = pickle.dumps(_as_tuple(exchange), protocol=pickle.HIGHEST_PROTOCOL)
        self._pickles.append(pickled)
        self._pickled_bytes += len(pickled)
        if self._pickled_bytes >= BATCH_BYTES:
            self._store()

    def drain(self) -> Iterator[Exchange]:
        """Everything that was added; nothing may be added afterwards."""
        self._store()
        while self._writing:
            self._settle()
        self._writer.shutdown()
        if self._file is not None:
            with io.BufferedReader(self._file) as file:
                file.seek(0)
                yield from _exchanges(file, self._whole_bytes)
        while self._kept:
            batch = self._kept.pop()
            yield from _exchanges(io.BytesIO(batch), len(batch))

    def _store(self) -> None:
        batch = b"".join(self._pickles)
        self._pickles, self._pickled_bytes = [], 0
        while self._writing and self._writing[0][1].done():
            self._settle()
        if self.error or self._kept_bytes + len(batch) <= self._in_memory_bytes:
            self._keep(batch)
        else:
            self._writing.append((batch, self._writer.submit(self._append, batch)))

    def _append(self, batch: bytes) -> None:
        if self._file is None:
            # Unbuffered: what a write that failed left in a buffer would fail again when the file is read.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # `drain` closes it
        left = memoryview(batch)
        while left:
            left = left[self._file.write(left) :]

    def _settle(self) -> None:
        """Look at the oldest write. After one that failed, whatever stands behind it in the file is not trusted."""
        batch, write = self._writing.popleft()
        try:
            write.result()
        except OSError as error:
            self.error = self.error or str(error)
        if self.error:
            self._keep(batch)
        else:
            self._whole_bytes += len(batch)

    def _keep(self, batch: bytes) -> None:
        self._kept.append(batch)
        self._kept_bytes += len(batch)


def _exchanges(stream: IO[bytes], size_bytes: int) -> Iterator[Exchange]:
    while stream.tell() < size_bytes:
        yield Exchange(*pickle.load(stream))
