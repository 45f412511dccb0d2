"""Checksums of KV blocks: they tell every flipped byte, every exchanged block or layer, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.checksums import BlockSums, differing

LAYERS, BLOCKS, HEADS, CHANNELS = 3, 12, 2, 16
SIZES = [32, 128]


def caches(block_size: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """One cache per layer, `[blocks, heads, tokens, channels]`, as vLLM has them."""
    draw = torch.Generator().manual_seed(block_size)
    shape = (BLOCKS, HEADS, block_size, CHANNELS * dtype.itemsize)
    raw = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw) for _ in range(LAYERS)]
    return [layer.view(dtype) for layer in raw]


def copied(source: list[torch.Tensor], pairs: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Other caches, into which those blocks were pulled: (from, to)."""
    there = [torch.zeros_like(layer) for layer in source]
    for layer, other in zip(source, there, strict=True):
        for a, b in pairs:
            other[b] = layer[a]
    return there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("block_size", SIZES)
def test_what_was_pulled_in_order_has_the_same_sums_wherever_it_lies(block_size: int, dtype: torch.dtype) -> None:
    source = caches(block_size, dtype)
    pairs = [(7, 0), (2, 9), (3, 4), (4, 5)]
    there = copied(source, pairs)
    tokens = 4 * block_size
    ours = BlockSums(there).of([b for _, b in pairs], tokens)
    assert ours == BlockSums(source).of([a for a, _ in pairs], tokens)
    assert len(set(ours)) == 4 and all(-(1 << 63) <= one < 1 << 63 for one in ours)


@pytest.mark.parametrize("block_size", SIZES)
def test_blocks_in_another_order_differ(block_size: int) -> None:
    sums = BlockSums(caches(block_size))
    lent = sums.of([1, 2, 3, 4], 4 * block_size)
    assert differing(sums.of([1, 3, 2, 4], 4 * block_size), lent) == [1, 2]
    assert differing(sums.of([2, 3, 4, 5], 4 * block_size), lent) == [0, 1, 2, 3], "shifted by one"


@pytest.mark.parametrize("block_size", SIZES)
def test_layers_in_another_order_differ(block_size: int) -> None:
    source = caches(block_size)
    lent = BlockSums(source).of([1, 2], 2 * block_size)
    assert differing(BlockSums([source[1], source[0], source[2]]).of([1, 2], 2 * block_size), lent) == [0, 1]


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("tail_tokens", [1, 7, 31])
def test_behind_the_last_token_nothing_counts(block_size: int, tail_tokens: int) -> None:
    source = caches(block_size)
    there = copied(source, [(1, 1), (2, 2)])
    tokens = block_size + tail_tokens
    lent = BlockSums(source).of([1, 2], tokens)
    for layer in there:
        layer[2, :, tail_tokens:] = 0
    assert BlockSums(there).of([1, 2], tokens) == lent
    there[-1].view(torch.uint8)[2, HEADS - 1, tail_tokens - 1, -1] ^= 1
    assert differing(BlockSums(there).of([1, 2], tokens), lent) == [1]


@settings(max_examples=200)
@given(
    block_size=st.sampled_from(SIZES),
    layer=st.integers(0, LAYERS - 1),
    block=st.integers(0, 2),
    head=st.integers(0, HEADS - 1),
    token=st.integers(0, 31),
    byte=st.integers(0, 2 * CHANNELS - 1),
    bits=st.integers(1, 255),
)
def test_any_flip_in_a_byte_is_told_and_where(
    block_size: int, layer: int, block: int, head: int, token: int, byte: int, bits: int
) -> None:
    there = caches(block_size)
    lent = BlockSums(there).of([8, 3, 4], 3 * block_size)
    there[layer].view(torch.uint8)[[8, 3, 4][block], head, token, byte] ^= bits
    assert differing(BlockSums(there).of([8, 3, 4], 3 * block_size), lent) == [block]


def test_a_block_of_several_kernel_blocks_has_a_sum_for_each() -> None:
    source = caches(32)
    sums = BlockSums(source, blocks_per_id=4)
    assert sums.of([1], 128) == BlockSums(source).of([4, 5, 6, 7], 128)
    assert sums.of([0, 2], 128 + 40) == BlockSums(source).of([0, 1, 2, 3, 8, 9], 128 + 40)


def test_layouts_that_put_layers_side_by_side_have_the_same_sums() -> None:
    apart = caches(32)
    together = torch.stack(apart, dim=1)
    beside = [together[:, n] for n in range(LAYERS)]
    assert not beside[0].is_contiguous()
    assert BlockSums(beside).of([3, 4, 9], 90) == BlockSums(apart).of([3, 4, 9], 90)


def test_blocks_that_are_not_there_are_refused() -> None:
    sums = BlockSums(caches(32))
    for blocks, tokens in (([BLOCKS], 32), ([-1], 32), ([0], 33), ([0], -1)):
        with pytest.raises(ValueError, match=r"no -?[0-9]+ tokens in blocks"):
            sums.of(blocks, tokens)
    assert sums.of([], 0) == [] and sums.of([3], 0) == []


def test_only_the_end_of_what_was_lent_is_compared() -> None:
    assert differing([3, 4], [1, 2, 3, 4]) == []
    assert differing([3, 5], [1, 2, 3, 4]) == [1]
    assert differing([1, 2], [2]) == [0, 1], "fewer were lent than came"
    assert differing([], [1]) == []
