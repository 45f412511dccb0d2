"""The NIXL connector, fit for contexts that move at any token.

vLLM's connector pulls the KV of a *prompt*. A moved context has output too, so this subclass counts all tokens with
KV, exports exactly the blocks that hold them, and keeps blocks only for a leg that really hands off.

Load it as `kv_connector="NixlConnector"` from this module: vLLM recognises NIXL by that name in several checks
(`has_connector("NixlConnector")` in vllm/config/vllm.py and platforms/cpu.py), so the class keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlBaseConnector, NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata, NixlHandshakePayload
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.utils.math_utils import cdiv
from vllm.v1.request import RequestStatus

from serving.engine.checked_transfers import OFFER, Handshake, PullsToCheck, checks_transfers, offer, pull_of
from serving.engine.checksums import BlockSums
from serving.engine.lent_sums import Lender, LentSums, ask
from serving.engine.pull_checks import PullChecks
from serving.engine.resume import install_in_worker, leg_of
from serving.engine.transfer_stats import TransferMetrics, TransferStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

PROGRESS_THREAD_DELAY_US = 100


class ContextScheduler(NixlPullConnectorScheduler):
    """Scheduler side: which tokens have KV elsewhere, and which blocks stay for a pull."""

    _lender: Lender | None = None

    def __init__(self, vllm_config: VllmConfig, engine_id: str, kv_cache_config: KVCacheConfig):
        super().__init__(vllm_config, engine_id, kv_cache_config)
        if self._prefill_backoff():
            raise ValueError(
                "this model must recompute the end of its prompt after a KV transfer (Mamba state or look-ahead "
                "modules), so a prefill engine cannot give its first token; serve it from a `mixed` pool"
            )
        if self.use_host_buffer:
            raise ValueError(
                "kv_buffer_device=cpu on a GPU: a leg that hands off later was never copied to the host buffer, so its "
                "destination would read garbage; leave kv_buffer_device at the GPU"
            )
        self._block_size_tokens = tuple(g.kv_cache_spec.block_size for g in kv_cache_config.kv_cache_groups)
        self._checks_transfers = checks_transfers(vllm_config, kv_cache_config)

    def set_xfer_handshake_metadata(self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]) -> None:
        super().set_xfer_handshake_metadata(metadata)
        if self._checks_transfers:
            self._lender = Lender([worker.sums_address for _, worker in sorted(metadata.items())])

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        params = request.kv_transfer_params
        if params is None or not params.get("do_remote_prefill"):
            return super().get_num_new_matched_tokens(request, num_computed_tokens)
        # The last token never has KV: it is sampled but not yet fed.
        tokens_with_kv = min(params["remote_num_tokens"], request.num_tokens - 1)
        count = tokens_with_kv - num_computed_tokens
        return (count, True) if count > 0 else (0, False)

    def request_finished(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if request.kv_transfer_params and not _hands_off(request):
            return self._forget(request)
        tokens_with_kv = min(request.num_computed_tokens, request.num_tokens - 1)
        # A look-ahead block at the end would shift the consumer's tail-aligned list by one: silently wrong KV.
        held = tuple(
            ids[: cdiv(tokens_with_kv, size)] for ids, size in zip(block_ids, self._block_size_tokens, strict=True)
        )
        delay_free, params = super().request_finished(request, held)
        if params is not None:
            self._tell_lent(request.request_id, held[0], tokens_with_kv, params)
        return delay_free, params

    def lend(self, loan: Request, block_ids: list[int], num_tokens: int) -> dict[str, Any]:
        """Offer the blocks of a loan (serving.engine.loan) for a pull, on the same lease as those of a handoff."""
        self._reqs_in_batch.add(loan.request_id)
        _, params = super().request_finished(loan, (block_ids,))
        assert params is not None
        self._tell_lent(loan.request_id, block_ids, num_tokens, params)
        return params

    def _tell_lent(self, request_id: str, block_ids: list[int], num_tokens: int, params: dict[str, Any]) -> None:
        """Complete the parameters of a pull, and let the workers sum what it should bring."""
        params["remote_num_tokens"] = num_tokens
        if self._lender is not None:
            params[OFFER] = offer(self._lender.addresses, self._block_size_tokens[0])
            self._lender.lend(request_id, block_ids, num_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> NixlConnectorMetadata:
        """NIXL's orders to the workers, with what its pulls should bring."""
        pulls = {}
        for request_id, (request, block_ids, _, awaits_kv) in self._reqs_need_recv.items():
            pull = pull_of(request.kv_transfer_params, block_ids[0], self._block_size_tokens[0]) if awaits_kv else None
            if pull is not None and self._checks_transfers:
                pulls[request_id] = pull
        orders = super().build_connector_meta(scheduler_output)
        return PullsToCheck(orders, pulls) if pulls else orders

    def shutdown(self) -> None:
        super().shutdown()
        if self._lender is not None:
            self._lender.close()

    def _forget(self, request: Request) -> tuple[bool, None]:
        """Free the blocks at once: the context ended here, nobody will pull them."""
        params = request.kv_transfer_params
        assert params is not None
        if params.get("do_remote_decode"):
            self._stop_heartbeat(request.request_id)
            self._reqs_not_processed.add(request.request_id)
            self._reqs_need_save.pop(request.request_id, None)
            return False, None
        super().request_finished(request, ())
        return False, None


def _hands_off(request: Request) -> bool:
    """True when the leg ended only because its handoff limit was reached, so the context goes on elsewhere."""
    params, leg = request.sampling_params, leg_of(request.sampling_params)
    return (
        leg is not None
        and leg.handoff_at_tokens is not None
        and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
        and request.num_output_tokens < (params.max_tokens or 0)
        and request.num_tokens < leg.max_model_len
    )


class ContextWorker(NixlPullConnectorWorker):
    """Worker side: an agent whose progress thread sleeps between polls, and checks of what it pulled."""

    _lent: LentSums | None = None
    _checks: PullChecks | None = None

    def __init__(self, vllm_config: VllmConfig, engine_id: str, kv_cache_config: KVCacheConfig):
        with _patient_progress_thread():
            super().__init__(vllm_config, engine_id, kv_cache_config)
        self._checks_transfers = checks_transfers(vllm_config, kv_cache_config)
        self.xfer_stats = TransferStats()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        if not self._checks_transfers:
            return
        blocks_per_id = self._physical_blocks_per_logical_kv_block
        # Any order will do that is the same on every engine.
        caches = [kv_caches[name] for name in sorted(self._layer_specs)]
        sums = BlockSums(caches, blocks_per_id=blocks_per_id).of
        self._lent = LentSums(sums, envs.VLLM_NIXL_SIDE_CHANNEL_HOST)
        self._checks = PullChecks(sums, rank=self.tp_rank, blocks_per_id=blocks_per_id, ask=ask)
        told: NixlHandshakePayload = self.xfer_handshake_metadata
        self.xfer_handshake_metadata: NixlHandshakePayload = Handshake(**vars(told), sums_address=self._lent.address)

    def start_load_kv(self, metadata: NixlConnectorMetadata) -> None:
        if self._checks is not None and isinstance(metadata, PullsToCheck):
            for request_id, pull in metadata.pulls.items():
                # Engines of another width hold other parts of a block.
                if len(pull.addresses) == self.world_size:
                    self._checks.begin(request_id, pull)
        super().start_load_kv(metadata)

    def get_transfer_results(self) -> KVConnectorTransferResults:
        """NIXL's, but what was pulled counts as received only once it is checked; blocks that are not those that were
        lent are reported like blocks that never came, so the scheduler computes them anew."""
        results = super().get_transfer_results()
        if self._checks is None:
            return results
        for request_id in results.failed_recving:
            self._checks.drop(request_id)
        results.finished_recving -= {one for one in results.finished_recving if self._checks.pulled(one)}
        for request_id, verdict in self._checks.verdicts().items():
            results.finished_recving.add(request_id)
            self.xfer_stats.record_verdict(verdict)
            if verdict.bad_block_ids:
                self._invalid_block_ids.put(set(verdict.bad_block_ids))
        return results

    def shutdown(self) -> None:
        super().shutdown()
        if self._lent is not None and self._checks is not None:
            self._lent.close()
            self._checks.close()


@contextmanager
def _patient_progress_thread() -> Iterator[None]:
    """Agents made inside poll every 100 µs. NIXL's Python API hard-codes 0, which spins a core per idle engine."""
    import nixl._api as api

    make_agent = api.nixlBind.nixlAgent

    def make_patient_agent(name: str, config: Any) -> Any:
        config.pthrDelay = PROGRESS_THREAD_DELAY_US
        return make_agent(name, config)

    api.nixlBind.nixlAgent = make_patient_agent
    try:
        yield
    finally:
        api.nixlBind.nixlAgent = make_agent


class NixlConnector(NixlPullConnector):
    """The connector that Ferry's engines load."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig):
        NixlBaseConnector.__init__(self, vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self.connector_scheduler = ContextScheduler(vllm_config, self.engine_id, kv_cache_config)
        else:
            install_in_worker()
            self.connector_worker = ContextWorker(vllm_config, self.engine_id, kv_cache_config)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return TransferStats(data=data) if data is not None else TransferStats()

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> TransferMetrics:
        return TransferMetrics(*arguments)
