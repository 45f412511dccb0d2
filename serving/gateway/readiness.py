"""Whether a gateway's engines can serve. Pure."""

from __future__ import annotations

from collections.abc import Set

from serving.types import PoolRole


def not_ready_because(roles: Set[PoolRole], *, needs_prefill: bool, was_ready: bool) -> str | None:
    """What is missing among the roles of the ready engines; None when nothing is.

    A deployment is ready when each of its roles is there. Afterwards any engine will do: where a pool is lost the
    others take its work until it is replaced, and a balancer must not take the gateway out meanwhile.
    """
    if not roles:
        return "no engine is ready"
    if was_ready:
        return None
    if not roles & {PoolRole.DECODE, PoolRole.MIXED}:
        return "no engine that decodes is ready"
    if needs_prefill and PoolRole.PREFILL not in roles:
        return "no prefill engine is ready"
    return None
