"""What Ferry asks of an engine's workers, through vLLM's `worker_extension_cls` and `collective_rpc`."""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group

HANDSHAKE_TIMEOUT_S = 60.0


class WorkerExtension:
    """Mixed into vLLM's worker class by vLLM itself; stateless."""

    def ferry_kv_block_bytes(self) -> int:
        """Bytes of one KV block over all layers that this worker holds."""
        worker = get_kv_transfer_group().connector_worker
        return int(sum(worker.block_len_per_layer))

    def ferry_warm_peers(self, peers: list[dict[str, Any]]) -> list[float | None]:
        """Shake hands with other engines; seconds per peer, None for one that could not be met.

        The first contact of two NIXL agents can take seconds (metadata, memory registration, UCX wire-up). A peer
        that just died must not keep this engine from serving: its handshake is tried again when a move needs it.
        """
        worker = get_kv_transfer_group().connector_worker
        return [_warm(worker, peer) for peer in peers]


def _warm(worker: Any, peer: dict[str, Any]) -> float | None:
    started_s = time.perf_counter()
    pending = worker._ensure_handshake(
        peer["engine_id"], peer["host"], peer["port"], peer["tp_size"], pp_size=peer["pp_size"]
    )
    try:
        if pending is not None:
            pending.result(timeout=HANDSHAKE_TIMEOUT_S)
    except Exception:  # whatever NIXL, ZMQ or the peer's absence raises; vLLM's connector has logged it
        return None
    return time.perf_counter() - started_s
