"""Handoff: end a running leg at its next token and keep its KV blocks for a pull.

vLLM exports blocks only for a request that ran into its length limit. So a handoff lowers that limit to the next
token and marks the request for a remote decode, as if it had been a prefill from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from serving.engine.messages import LEG_KEY, HandOff

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.request import Request


def ferry_hand_off(core: EngineCore, leg_ids: list[str]) -> dict[str, str]:
    """What becomes of each leg, by id; the values are those of `HandOff`. Runs between two steps of the core."""
    scheduler: Scheduler = core.scheduler
    return {leg_id: str(_hand_off(scheduler, leg_id)) for leg_id in leg_ids}


def ferry_holds(core: EngineCore) -> int:
    """Requests that this engine has, those among them that ended but whose blocks wait to be pulled."""
    return len(core.scheduler.requests)


def _hand_off(scheduler: Scheduler, leg_id: str) -> HandOff:
    request = scheduler.requests.get(leg_id)
    if request is None or request.is_finished():
        return HandOff.GONE
    params, next_token = request.sampling_params, request.num_output_tokens + 1
    assert params is not None
    if next_token >= (params.max_tokens or 0):
        return HandOff.ENDING
    if request.status != RequestStatus.RUNNING or params.extra_args is None:
        # Queued, preempted, or still pulling: there is no KV here that another engine could use.
        return HandOff.NO_KV
    params.extra_args[LEG_KEY]["handoff_at_tokens"] = next_token
    request.max_tokens = min(request.max_tokens, next_token)
    _expect_a_pull(scheduler, request)
    return HandOff.AT_NEXT_TOKEN


def _expect_a_pull(scheduler: Scheduler, request: Request) -> None:
    """Tell NIXL about the pull to come. It learns of prefills when they are allocated; this request was not one.

    Unknown to the worker, the consumer's notification would be dropped and the blocks would never be freed.
    """
    connector: Any = scheduler.connector
    request.kv_transfer_params = {"do_remote_decode": True, "do_remote_prefill": False}
    connector.connector_scheduler._reqs_in_batch.add(request.request_id)
