"""Router v1 by examples; its laws are in tests/properties."""

from __future__ import annotations

from typing import Any

import pytest

from serving.router.policy import Candidate, choose_decode, choose_first
from serving.types import PoolRole


def candidate(replica_id: str, **fields: Any) -> Candidate:
    roles = {"p": PoolRole.PREFILL, "d": PoolRole.DECODE, "m": PoolRole.MIXED}
    defaults: dict[str, Any] = {
        "role": roles[replica_id[0]],
        "outstanding_prefill_tokens": 0,
        "batch": 0,
        "free_kv_blocks": 100,
        "block_size_tokens": 16,
        "max_num_seqs": 32,
    }
    return Candidate(replica_id=replica_id, **(defaults | fields))


P1, P2, D1, D2, M1 = map(candidate, ("p1", "p2", "d1", "d2", "m1"))
BUSY_P1 = candidate("p1", outstanding_prefill_tokens=1)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "candidates", "expected"),
    [
        (64, [], None),
        (64, [P1, P2], ("p1", False)),  # nobody else decodes: it stays there
        (10, [BUSY_P1, P2], ("p2", False)),
        (64, [P1, D1], ("p1", True)),
        (63, [P1, D1], ("d1", False)),
        (64, [D1], ("d1", False)),
        (64, [M1], ("m1", False)),
        (64, [P1, M1], ("p1", True)),
        (64, [BUSY_P1, P2, D1], ("p2", True)),
        (64, [P2, P1, D1], ("p1", True)),
        (64, [candidate("p1", batch=1), P2, D1], ("p2", True)),
        (10, [candidate("d1", batch=1), D2], ("d2", False)),
    ],
)
def test_where_a_context_starts(
    num_prompt_tokens: int, candidates: list[Candidate], expected: tuple[str, bool] | None
) -> None:
    route = choose_first(num_prompt_tokens, candidates, disaggregate_from_tokens=64)
    assert (None if route is None else (route.replica_id, route.hands_off)) == expected


@pytest.mark.parametrize(
    ("num_tokens", "candidates", "expected"),
    [
        (10, [], None),
        (10, [P1], "p1"),
        (10, [P1, candidate("p2", batch=1), candidate("d1", batch=9, free_kv_blocks=0)], "d1"),
        (10, [D1, M1], "d1"),
        (10, [candidate("d1", batch=1), M1], "m1"),
        # Half of 64 is less than two thirds of 3: what counts is how full a batch is.
        (10, [candidate("d1", batch=32, max_num_seqs=64), candidate("d2", batch=2, max_num_seqs=3)], "d1"),
        (10, [candidate("d1", outstanding_prefill_tokens=9), D2], "d2"),
        (10, [candidate("d1", free_kv_blocks=99), D2], "d2"),
        # 16 tokens and the next one need two blocks.
        (16, [candidate("d1", free_kv_blocks=1), candidate("d2", batch=9, free_kv_blocks=2)], "d2"),
        (15, [candidate("d1", free_kv_blocks=1), candidate("d2", batch=9, free_kv_blocks=2)], "d1"),
        # Nobody has the blocks: it queues where most are free.
        (1000, [candidate("d1", free_kv_blocks=1), candidate("d2", batch=9, free_kv_blocks=2)], "d2"),
        (1000, [candidate("d1", free_kv_blocks=-5), candidate("d2", free_kv_blocks=-9)], "d1"),
    ],
)
def test_where_a_context_decodes(num_tokens: int, candidates: list[Candidate], expected: str | None) -> None:
    route = choose_decode(num_tokens, candidates)
    assert (None if route is None else route.replica_id) == expected
    assert route is None or (not route.hands_off and route.reason)
