"""Requests as engines get them: a context's current leg, and the release of blocks that nobody will pull."""

from __future__ import annotations

import copy
import time
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serving.contexts.context import Context
from serving.engine.messages import LEG_KEY
from serving.types import EngineInfo

# A client's own extra arguments may not steer engines: only Ferry says where KV comes from.
STEERING_ARGS = frozenset({LEG_KEY, "kv_transfer_params", "ec_transfer_params"})

Kv = dict[str, Any]
"""NIXL's parameters of one pull: which engine keeps which blocks, and how to reach it."""


def leg_request(
    request: EngineCoreRequest, context: Context, kv: Kv | None, *, max_model_len: int
) -> EngineCoreRequest:
    """The request of the context's current leg: same sampling, its own id, and the leg's data in `extra_args`."""
    assert request.sampling_params is not None
    leg = copy.copy(request)
    leg.request_id = context.leg_id
    leg.sampling_params = copy.copy(request.sampling_params)
    hands_off = context.handoff_at_tokens is not None
    transfer = kv if kv is not None else ({"do_remote_decode": True, "do_remote_prefill": False} if hands_off else None)
    leg.sampling_params.extra_args = {
        **_from_client(request.sampling_params.extra_args or {}),
        LEG_KEY: {
            "output_token_ids": context.output_token_ids,
            "handoff_at_tokens": context.handoff_at_tokens,
            "max_model_len": max_model_len,
        },
        **({"kv_transfer_params": transfer} if transfer is not None else {}),
    }
    return leg


def _from_client(extra_args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra_args.items() if name not in STEERING_ARGS}


def copy_request(request: EngineCoreRequest, token_ids: list[int], kv: Kv, copy_id: str) -> EngineCoreRequest:
    """Fills the destination's prefix cache with the blocks that `kv` names, and ends.

    `token_ids`: the context's so far. It asks for the tokens with KV and one more, so that all of them are pulled; the
    one token that it generates is nobody's. Whatever else separates prefix caches (salt, adapter) is the context's own.
    """
    copied = copy.copy(request)
    copied.request_id, copied.prompt_token_ids = copy_id, token_ids[: kv["remote_num_tokens"] + 1]
    copied.sampling_params = SamplingParams(temperature=0.0, max_tokens=1, extra_args={"kv_transfer_params": kv})
    return copied


def bytes_carried(info: EngineInfo, kv: Kv, *, beyond_tokens: int = 0) -> int:
    """KV bytes that the pull moves at most, less the blocks of `beyond_tokens` that were copied before; other blocks
    that the destination has cached stay where they are, too."""
    blocks = len(kv["remote_block_ids"][0]) - beyond_tokens // info.block_size_tokens
    return max(0, blocks) * info.kv_block_bytes


def release_request(kv: Kv) -> EngineCoreRequest:
    """Frees the blocks that `kv` names.

    vLLM has the way: a request that is aborted on arrival makes its connector notify the source. NIXL cannot notify
    itself, so it must go to another engine than the source.
    """
    return EngineCoreRequest(
        request_id=f"release-{kv['remote_request_id']}",
        prompt_token_ids=[0],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=1, extra_args={"kv_transfer_params": kv}),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        abort_immediately=True,
    )
