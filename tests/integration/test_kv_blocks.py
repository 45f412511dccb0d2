"""The planner's KV blocks against those that real engines report at their start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planner import MemoryReport, kv_layout, memory_report, read_shape
from serving.engine.channel import ChannelKeys
from serving.settings import EngineSettings
from serving.types import EngineInfo, PoolRole
from tests.integration.engines import SETTINGS, Host, model_files

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

GIB = 1 << 30
SHAPES = ((512, 0.1, 32, "float32"), (2048, 0.3, 64, "bfloat16"), (8192, 0.7, 128, "float32"))
ENGINES = [
    SETTINGS.model_copy(update={"max_model_len": length, "kv_cache_gib": gib, "block_size": block, "dtype": dtype})
    for length, gib, block, dtype in SHAPES
]


@pytest.fixture(scope="module")
def started() -> Iterator[list[Host]]:
    """One engine of each kind, started side by side."""
    keys = ChannelKeys.generate()
    running = [Host(f"k{number}", PoolRole.MIXED, keys, settings) for number, settings in enumerate(ENGINES)]
    try:
        for host in running:
            host.await_start()
        yield running
    finally:
        for host in running:
            host.stop()


@pytest.mark.parametrize("number", range(len(ENGINES)), ids=[f"{engine.max_model_len} tokens" for engine in ENGINES])
def test_blocks_are_those_that_the_engine_has(started: list[Host], number: int) -> None:
    hold_equal(ENGINES[number], started[number].info)


def hold_equal(settings: EngineSettings, found: EngineInfo) -> None:
    predicted = report(settings)
    assert predicted.kv_blocks == pytest.approx(found.num_kv_blocks, rel=0.02)
    assert predicted.block_bytes == found.kv_block_bytes
    layout = kv_layout(
        read_shape(model_files().path), kv_dtype=settings.dtype, block_size_tokens=found.block_size_tokens
    )
    assert layout.block_bytes() == found.kv_block_bytes
    assert predicted.request_fits, "the engine started, so one longest request fits"


def report(settings: EngineSettings) -> MemoryReport:
    assert settings.kv_cache_gib is not None and settings.block_size is not None
    return memory_report(
        read_shape(model_files().path),
        engines=1,
        kv_cache_bytes=int(settings.kv_cache_gib * GIB),
        max_model_len_tokens=settings.max_model_len,
        available_bytes=8 * GIB,
        kv_dtype=settings.dtype,
        block_size_tokens=settings.block_size,
    )
