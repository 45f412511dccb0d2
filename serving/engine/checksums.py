"""Checksums of KV blocks: what the source of a pull lent, and what its destination got.

A sum of the block's bytes as 64-bit words, each layer's times an odd number of its own, all modulo 2^64. It changes
with any one word, wherever that lies, since odd numbers have inverses; exchanged blocks and exchanged layers change
it too. It is one reduction on the device where the blocks are, at the pace of memory. It guards against broken links
and stale blocks, not against people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

MODULUS = 1 << 64
WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class BlockSums:
    """Sums over the blocks of some caches, one cache per layer: `[blocks, …, tokens, channels]`.

    With `blocks_per_id` kernel blocks behind each block id, there are as many sums per id.
    """

    def __init__(self, caches: Sequence[torch.Tensor], *, blocks_per_id: int = 1):
        self._layers = [_as_words(cache) for cache in caches]
        self._blocks_per_id = blocks_per_id
        self._num_blocks = min(layer.shape[0] for layer in self._layers)
        self.block_size_tokens = int(caches[0].shape[-2])
        device = caches[0].device
        # Beside the model's own work, which does not wait for sums.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def of(self, block_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The sums of the blocks that hold `num_tokens`, in order; what lies behind the last token does not count.

        Raises:
            ValueError: for blocks that are not there, or too few for the tokens.
        """
        blocks = [block_id * self._blocks_per_id + n for block_id in block_ids for n in range(self._blocks_per_id)]
        full, tail_tokens = divmod(num_tokens, self.block_size_tokens)
        if not 0 <= num_tokens <= len(blocks) * self.block_size_tokens or not all(
            0 <= block < self._num_blocks for block in blocks
        ):
            raise ValueError(f"no {num_tokens} tokens in blocks {block_ids} of {self._num_blocks}")
        with self._beside():
            parts = [self._parts(layer, blocks[:full]) for layer in self._layers]
            if tail_tokens:
                tails = [layer[blocks[full], ..., :tail_tokens, :].sum().reshape(1) for layer in self._layers]
                parts = [torch.cat(pair) for pair in zip(parts, tails, strict=True)]
            by_layer: list[list[int]] = torch.stack(parts).tolist()
        return [_folded(block) for block in zip(*by_layer, strict=True)]

    def _parts(self, layer: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
        """One layer's sums. A gather on the CPU would cost more than its sums, so blocks in a row are taken as they
        lie; on a GPU it is one kernel instead of many."""
        inner = tuple(range(1, layer.ndim))
        if not blocks:
            return torch.zeros(0, dtype=torch.int64, device=layer.device)
        if layer.device.type != "cpu":
            return layer[torch.tensor(blocks, device=layer.device)].sum(dim=inner, dtype=torch.int64)
        return torch.cat([layer[a:b].sum(dim=inner, dtype=torch.int64) for a, b in _rows(blocks)])

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _as_words(cache: torch.Tensor) -> torch.Tensor:
    """The same memory as the widest integers that fit."""
    raw = cache.view(torch.uint8)
    steps = [raw.shape[-1], raw.storage_offset(), *raw.stride()[:-1]]
    widest = next(word for word in WORDS if all(step % word.itemsize == 0 for step in steps))
    return raw.view(widest)


def _rows(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Blocks that follow each other, as (first, one past the last)."""
    begin = previous = blocks[0]
    for block in blocks[1:]:
        if block != previous + 1:
            yield begin, previous + 1
            begin = block
        previous = block
    yield begin, previous + 1


def _folded(parts: Sequence[int]) -> int:
    """A block's sum from those of its layers, signed as 64-bit integers are."""
    total = sum((2 * layer + 1) * part for layer, part in enumerate(parts)) % MODULUS
    return total - MODULUS if total >= MODULUS >> 1 else total


def differing(ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
    """Positions in `ours` whose sums are not those of the source. A destination pulls the end of what was lent, as
    its prefix cache may have the rest, so the lists are aligned at their ends."""
    if len(theirs) < len(ours):
        return list(range(len(ours)))
    return [
        n for n, (our, their) in enumerate(zip(ours, theirs[len(theirs) - len(ours) :], strict=True)) if our != their
    ]
