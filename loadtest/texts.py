"""Texts of a wanted number of tokens, from nothing but numbers. Pure: equal numbers are equal text everywhere.

A text is a row of common words. Each is one token in the vocabularies of most models, with the space before it, and
tokenizers do not join words; so texts can be cut and put together token by token, and two prompts that begin with the
same segment begin with the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
)
WORDS = tuple(_WORDS.split())

Numbers = NDArray[np.uint64]


class Segment(NamedTuple):
    """A stretch of text: equal keys, equal words, of which `tokens` are taken from the begin."""

    key: int
    tokens: int


def key_of(*names: object) -> int:
    """A key for whatever these names mean together; other names, another key."""
    digest = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def text_of(segments: Iterable[Segment], words: Sequence[str] = WORDS) -> str:
    """The words of these segments, one after the other, with a space between two."""
    rows = [_hashed(segment) for segment in segments if segment.tokens > 0]
    if not rows:
        return ""
    choices = np.concatenate(rows) % np.uint64(len(words))
    return " ".join([words[choice] for choice in choices.tolist()])


def cut_to(segments: Iterable[Segment], tokens: int, rest_key: int) -> list[Segment]:
    """Exactly `tokens` of them: what is too much is cut off at the end, what is missing comes from `rest_key`."""
    kept: list[Segment] = []
    for segment in segments:
        taken = min(segment.tokens, tokens)
        tokens -= taken
        kept.append(segment._replace(tokens=taken))
    return [*kept, Segment(rest_key, tokens)]


def _hashed(segment: Segment) -> Numbers:
    """One well mixed number for each place of a segment (SplitMix64), whatever its length."""
    with np.errstate(over="ignore"):
        mixed = np.uint64(segment.key) + (np.arange(1, segment.tokens + 1, dtype=np.uint64)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)
