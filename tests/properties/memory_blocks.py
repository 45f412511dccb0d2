"""KV blocks that remember what was computed into them, so that a wrong, stale or foreign block changes the next token.

The KV of a token depends on all tokens before it, and the next token on the KV of all. Here both are checksums.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK_SIZE_TOKENS = 4

KvEntries = tuple[int, ...]


def kv_of(tokens: Iterable[int], before: Sequence[int] = ()) -> KvEntries:
    """The KV entries of tokens that follow those of `before`."""
    entries, last = [], before[-1] if before else 0
    for token in tokens:
        last = zlib.crc32(token.to_bytes(4, "little"), last)
        entries.append(last)
    return tuple(entries)


def token_after(kv: Sequence[int]) -> int:
    """The token that the model generates from this KV."""
    return 1000 + zlib.crc32(array("I", kv).tobytes()) % 1_000_000


def stream(prompt: Sequence[int], count: int) -> list[int]:
    """What an undisturbed engine generates after a prompt."""
    kv, tokens = kv_of(prompt), list[int]()
    for _ in range(count):
        tokens.append(token_after(kv))
        kv += kv_of(tokens[-1:], kv)
    return tokens


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE_TOKENS)


@dataclass(slots=True)
class Block:
    """`kv`: what was computed or copied into it. `claim`: the tokens that the prefix cache takes it for."""

    kv: KvEntries = ()
    refs: int = 0
    claim: tuple[int, ...] | None = None


class BlockPool:
    """Blocks with owners counted, as vLLM's: a full block that nobody owns stays in the prefix cache until needed."""

    def __init__(self, count: int) -> None:
        self.blocks = [Block() for _ in range(count)]
        self._free = list(range(count))
        self._cached: dict[tuple[int, ...], int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Own that many blocks anew; None when there are not so many."""
        if count > len(self._free):
            return None
        taken, self._free = self._free[:count], self._free[count:]
        for number in taken:
            self._forget(number)
            self.blocks[number] = Block(refs=1)
        return taken

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The cached blocks of the longest prefix; never that of the last token, which is to be computed."""
        found: list[int] = []
        for end in range(BLOCK_SIZE_TOKENS, len(tokens), BLOCK_SIZE_TOKENS):
            number = self._cached.get(tuple(tokens[:end]))
            if number is None:
                break
            found.append(number)
        return found

    def touch(self, numbers: Iterable[int]) -> None:
        """One owner more."""
        for number in numbers:
            if self.blocks[number].refs == 0:
                self._free.remove(number)
            self.blocks[number].refs += 1

    def drop(self, numbers: Iterable[int]) -> None:
        """One owner less."""
        for number in numbers:
            self.blocks[number].refs -= 1
            assert self.blocks[number].refs >= 0, "a block is freed twice"
            if self.blocks[number].refs == 0:
                self._free.append(number)

    def cache(self, numbers: Sequence[int], tokens: Sequence[int]) -> None:
        """Take the full blocks of these tokens into the prefix cache."""
        for n, number in enumerate(numbers[: len(tokens) // BLOCK_SIZE_TOKENS]):
            claim = tuple(tokens[: (n + 1) * BLOCK_SIZE_TOKENS])
            if self.blocks[number].claim is None and claim not in self._cached:
                self.blocks[number].claim, self._cached[claim] = claim, number

    def _forget(self, number: int) -> None:
        claim = self.blocks[number].claim
        if claim is not None:
            del self._cached[claim]
