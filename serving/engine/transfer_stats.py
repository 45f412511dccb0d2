"""NIXL's statistics of transfers, and those of their checks, on vLLM's way from workers to the engine's metrics."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import PromMetric, PromMetricT
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats, NixlPromMetrics
from vllm.v1.metrics.utils import create_metric_per_engine

from serving.engine.pull_checks import Verdict

FAILURES, UNANSWERED = "num_checksum_failures", "num_checksums_unanswered"


class TransferStats(NixlKVConnectorStats):
    """As NIXL's, with one entry more per pull that did not stand its check."""

    def reset(self) -> None:
        super().reset()
        self.data[FAILURES], self.data[UNANSWERED] = [], []

    def record_verdict(self, verdict: Verdict) -> None:
        if verdict.bad_block_ids:
            self.data[FAILURES if verdict.answered else UNANSWERED].append(1)

    def is_empty(self) -> bool:
        return bool(super().is_empty()) and not (self.data[FAILURES] or self.data[UNANSWERED])


class TransferMetrics(NixlPromMetrics):
    """As NIXL's, with Ferry's counters."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        texts = {
            FAILURES: ("ferry:kv_checksum_failures", "Pulls whose blocks were not those that their source lent."),
            UNANSWERED: ("ferry:kv_checksums_unanswered", "Pulls whose source did not tell what it had lent."),
        }
        self._checks = {
            key: create_metric_per_engine(
                self._counter_cls(name=name, documentation=text, labelnames=labelnames), self.per_engine_labelvalues
            )
            for key, (name, text) in texts.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        super().observe(transfer_stats_data, engine_idx)
        for key, counters in self._checks.items():
            counters[engine_idx].inc(len(transfer_stats_data[key]))
