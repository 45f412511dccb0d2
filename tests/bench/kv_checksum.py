"""What it costs to check a transfer: the checksums of a context's blocks on this machine's CPU, at one end.

KV of SmolLM2-135M (30 layers, 3 heads, 64 + 64 channels, bfloat16: 23 KB per token) in a cache of 1.2 GB. Blocks in a
row, as an engine without load allocates them, and scattered. One thread, as engines on CPU have.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from serving.engine.checksums import BlockSums

LAYERS, HEADS, CHANNELS = 30, 3, 128
CACHE_TOKENS = 50_000


def median_ms(sums: BlockSums, blocks: list[int], tokens: int, repeats: int) -> float:
    took_s = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        sums.of(blocks, tokens)
        took_s.append(time.perf_counter() - started_s)
    return 1000 * statistics.median(took_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("block tokens | context tokens | blocks in a row, ms | scattered, ms | per 1,000 tokens, ms")
    for block_size in (32, 128):
        count = CACHE_TOKENS // block_size
        caches = [torch.ones((count, HEADS, block_size, CHANNELS), dtype=torch.bfloat16) for _ in range(LAYERS)]
        sums = BlockSums(caches)
        for tokens in (1024, 4096):
            needed = tokens // block_size
            row, scattered = list(range(3, 3 + needed)), torch.randperm(count)[:needed].tolist()
            times = [median_ms(sums, blocks, tokens, repeats) for blocks in (row, scattered)]
            per_1k = " to ".join(f"{1000 * ms / tokens:.2f}" for ms in times)
            print(f"{block_size:12} | {tokens:14} | {times[0]:19.2f} | {times[1]:13.2f} | {per_1k}")


if __name__ == "__main__":
    main()
