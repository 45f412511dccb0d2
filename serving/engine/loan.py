"""Loan: keep the full KV blocks of a running leg for a pull, while the leg goes on.

A full block never changes, so a destination can pull it ahead of the move. But the leg may end, or be aborted, during
the pull; its blocks would be given to others and the puller would read their KV. So the loan is a second owner: a
finished request of its own, with its own references to the blocks, that vLLM frees like any prefill whose blocks were
pulled, or whose lease ran out.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request, RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore


def ferry_lend(
    core: EngineCore, leg_id: str, loan_id: str, beyond_tokens: int, most_blocks: int
) -> dict[str, Any] | None:
    """NIXL's parameters for a pull of the leg's full blocks, at most so many beyond `beyond_tokens`; None when none are
    full beyond these, when the leg does not run, or where blocks do change (sliding windows, Mamba states). Runs
    between two steps of the core."""
    scheduler: Scheduler = core.scheduler
    request = scheduler.requests.get(leg_id)
    group = _only_group(scheduler)
    if request is None or request.status != RequestStatus.RUNNING or group is None:
        return None
    # A step may be under way: it computes the last token, so count only tokens before that one.
    tokens_with_kv = min(request.num_computed_tokens, request.num_tokens - 1)
    block_size_tokens: int = group.kv_cache_spec.block_size
    beyond = beyond_tokens // block_size_tokens
    lent = min(tokens_with_kv // block_size_tokens, beyond + most_blocks)
    return _lend(scheduler, request, loan_id, lent, lent * block_size_tokens) if lent > beyond else None


def _only_group(scheduler: Scheduler) -> Any:
    groups = scheduler.kv_cache_config.kv_cache_groups
    plain = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
    return groups[0] if plain and scheduler.connector is not None else None


def _lend(scheduler: Scheduler, request: Request, loan_id: str, blocks: int, tokens: int) -> dict[str, Any]:
    loan = copy.copy(request)
    loan.request_id, loan.status, loan.num_computed_tokens = loan_id, RequestStatus.FINISHED_LENGTH_CAPPED, tokens
    loan.kv_transfer_params = {"do_remote_decode": True, "do_remote_prefill": False}
    manager = scheduler.kv_cache_manager
    (single,) = manager.coordinator.single_type_managers
    lent = single.req_to_blocks[request.request_id][:blocks]
    manager.block_pool.touch(lent)
    single.req_to_blocks[loan_id] = list(lent)
    scheduler.requests[loan_id] = loan
    connector: Any = scheduler.connector
    params: dict[str, Any] = connector.connector_scheduler.lend(loan, [block.block_id for block in lent], tokens)
    return params
