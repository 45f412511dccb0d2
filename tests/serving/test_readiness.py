"""When a gateway says that it is ready."""

from __future__ import annotations

import pytest

from serving.gateway.readiness import not_ready_because
from serving.types import PoolRole

P, D, M = PoolRole.PREFILL, PoolRole.DECODE, PoolRole.MIXED


@pytest.mark.parametrize(
    ("roles", "needs_prefill", "was_ready", "missing"),
    [
        (set(), False, False, "no engine"),
        (set(), False, True, "no engine"),
        ({P}, True, False, "decodes"),
        ({P}, True, True, None),
        ({D}, True, False, "prefill"),
        ({D}, True, True, None),
        ({P, D}, True, False, None),
        ({P, M}, True, False, None),
        ({M}, False, False, None),
        ({D}, False, False, None),
    ],
)
def test_what_is_missing(roles: set[PoolRole], needs_prefill: bool, was_ready: bool, missing: str | None) -> None:
    reason = not_ready_because(roles, needs_prefill=needs_prefill, was_ready=was_ready)
    assert reason is None if missing is None else reason is not None and missing in reason
