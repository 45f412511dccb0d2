"""Where checks of transfers join NIXL's own messages: the switch, the handshake, and what a pull must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata, NixlHandshakePayload
from vllm.v1.kv_cache_interface import FullAttentionSpec

from serving.engine.core import CHECKS_TRANSFERS
from serving.engine.pull_checks import Pull

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

OFFER = "ferry_sums"
"""Key of a pull's parameters, of what `offer` makes."""


def checks_transfers(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> bool:
    """Whether this engine's transfers are checked.

    Raises:
        ValueError: when they should be and cannot.
    """
    if not vllm_config.kv_transfer_config.get_from_extra_config(CHECKS_TRANSFERS, False):
        return False
    parallel, groups = vllm_config.parallel_config, kv_cache_config.kv_cache_groups
    if parallel.pipeline_parallel_size > 1 or parallel.distributed_executor_backend == "ray":
        raise ValueError("kv_checksum: moves needs all workers of an engine on one node, without pipeline stages")
    if len(groups) != 1 or not isinstance(groups[0].kv_cache_spec, FullAttentionSpec):
        raise ValueError("kv_checksum: moves knows only models with full attention in every layer; set it to off")
    return True


@dataclass
class Handshake(NixlHandshakePayload):
    """NIXL's, with the address where this worker tells its sums. Other engines read no more than NIXL's part."""

    sums_address: str = ""


class PullsToCheck(NixlConnectorMetadata):
    """NIXL's orders to a worker, with the pulls among them that are to be checked."""

    def __init__(self, orders: NixlConnectorMetadata, pulls: dict[str, Pull]):
        self.__dict__.update(orders.__dict__)
        self.pulls = pulls


def offer(addresses: list[str], block_size_tokens: int) -> dict[str, Any]:
    """What a source tells of its sums: where each worker has them, by rank, and the blocks that they are of."""
    return {"addresses": addresses, "block_size_tokens": block_size_tokens}


def pull_of(params: dict[str, Any], block_ids: list[int], block_size_tokens: int) -> Pull | None:
    """What a pull into these blocks should bring: they are the last of those that are lent. None when its source
    tells no sums, or those of blocks of another size."""
    offered = params.get(OFFER)
    if offered is None or offered["block_size_tokens"] != block_size_tokens:
        return None
    cached = len(params["remote_block_ids"][0]) - len(block_ids)
    return Pull(
        remote_request_id=params["remote_request_id"],
        addresses=tuple(offered["addresses"]),
        block_ids=tuple(block_ids),
        num_tokens=params["remote_num_tokens"] - cached * block_size_tokens,
    )
