"""One real deployment for all tests of this folder.

Float32 makes greedy tokens comparable between runs of different batch shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import Deployment, config_file, free_port, start, stop


@pytest.fixture(scope="package")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    port = free_port()
    path = config_file(
        tmp_path_factory.mktemp("ferry"),
        engine={"dtype": "float32"},
        gateway={"engine_wait_s": 120},  # outlives the replacement of an engine
    )
    try:
        yield start(path, port)
    finally:
        stop(port)
