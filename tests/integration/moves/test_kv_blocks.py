"""The planner's KV blocks against those of the engines that this folder shares; more lengths: ../test_kv_blocks.py."""

from __future__ import annotations

import pytest

from tests.integration.engines import SMALL_BLOCKS, Hosts
from tests.integration.test_kv_blocks import hold_equal

pytestmark = pytest.mark.slow


def test_blocks_are_those_that_the_engine_has(running: Hosts) -> None:
    for host in running.all:
        hold_equal(SMALL_BLOCKS, host.info)
