"""Bytes in pieces, for whatever must not care where a chunk ends."""

from __future__ import annotations

from itertools import pairwise


def chunked(whole: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes cut at these positions, which may repeat (an empty chunk) or lie behind the end (no cut)."""
    inside = sorted(cut for cut in cuts if cut <= len(whole))
    return [whole[begin:end] for begin, end in pairwise([0, *inside, len(whole)])]
