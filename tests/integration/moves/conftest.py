"""Two engines that do both and check what they pull, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.types import PoolRole
from tests.integration.engines import SMALL_BLOCKS, Hosts, hosts

CHECKING = SMALL_BLOCKS.model_copy(update={"kv_checksum": "moves"})


@pytest.fixture(scope="package")
def running() -> Iterator[Hosts]:
    with hosts([PoolRole.MIXED, PoolRole.MIXED], CHECKING) as running:
        yield running
