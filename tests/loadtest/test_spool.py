"""A disk that is full costs no record: what it did not take stays in memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.spool import BATCH_BYTES, Spool
from tests.loadtest.builders import exchange

PIECE_BYTES = 3000


@contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    """Writing beyond it fails as on a full disk, after what still fits was written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The first batch ends at most one exchange beyond BATCH_BYTES: near there a file's buffer would matter.
@pytest.mark.parametrize(
    "limit_bytes", [0, 1, BATCH_BYTES // 2, *range(BATCH_BYTES - 4096, BATCH_BYTES + 5000, 1024), 2 * BATCH_BYTES]
)
def test_a_disk_that_fills_up_costs_no_exchange(tmp_path: Path, limit_bytes: int) -> None:
    spool = Spool(tmp_path, in_memory_bytes=0)
    taken = [replace(exchange([(n, b"x" * PIECE_BYTES)]), number=n) for n in range(3 * BATCH_BYTES // PIECE_BYTES)]
    with files_of_at_most(limit_bytes):
        for one in taken:
            spool.add(one)
        back = sorted(spool.drain(), key=lambda one: one.number)
    assert back == taken and "File too large" in spool.error
