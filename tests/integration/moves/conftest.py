"""Two engines that do both, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.types import PoolRole
from tests.integration.engines import SMALL_BLOCKS, Hosts, hosts


@pytest.fixture(scope="package")
def running() -> Iterator[Hosts]:
    with hosts([PoolRole.MIXED, PoolRole.MIXED], SMALL_BLOCKS) as running:
        yield running
