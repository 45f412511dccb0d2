"""What the comparison of answers joins, leaves out, and notices."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.answers import differences, read


def stream(*pieces: str, chunk_id: str = "a", tokens: int = 4, index: int = 0) -> str:
    def event(**fields: Any) -> str:
        return f"data: {json.dumps({'id': chunk_id, 'created': len(chunk_id)} | fields)}\n\n"

    chunks = [event(choices=[{"index": index, "delta": {"content": piece}}]) for piece in pieces]
    usage = {"completion_tokens": tokens, "ferry": {"moves": 1}}
    return "".join([*chunks[:1], ": ferry move mode=kv reason=drain at_token=2 gap_ms=1.0\n\n", *chunks[1:]]) + (
        event(choices=[], usage=usage) + "data: [DONE]\n\n"
    )


def test_pieces_ids_and_moves_make_no_difference() -> None:
    one, other = read(stream("ab", "c")), read(stream("a", "b", "c", chunk_id="other"))
    assert differences(one.body, other.body, tolerance=0.0) == []
    assert one.output_tokens == 4 and one.moves == {"moves": 1} and one.comments == [("kv", 2)]


def test_text_usage_and_choice_make_a_difference() -> None:
    one = read(stream("ab", "c")).body
    assert differences(one, read(stream("ab", "d")).body, tolerance=1.0) == [
        "[0].choices[0].delta.content: 'abc' against 'abd'"
    ]
    assert differences(one, read(stream("ab", "c", tokens=5)).body, tolerance=1.0)
    assert differences(one, read(stream("ab", "c", index=1)).body, tolerance=1.0)


def test_logprobs_differ_beyond_the_tolerance_only() -> None:
    assert differences({"logprob": -0.25}, {"logprob": -0.5}, tolerance=0.25) == []
    assert differences({"logprob": -0.25}, {"logprob": -0.5}, tolerance=0.2)
