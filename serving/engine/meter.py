"""vLLM's own engine metrics (`vllm:*`), kept where the engine is.

vLLM computes them in its front end; ours sits in another process and sees only its own share of an engine's
requests. So the host feeds vLLM's Prometheus logger from the outputs that pass through it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, generate_latest
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreOutputs

ENGINE_INDEX = 0


@dataclass(slots=True)
class _Leg:
    prompt_tokens: int
    stats: RequestStateStats = field(default_factory=lambda: RequestStateStats(arrival_time=time.time()))
    prefilling: bool = True


class EngineMeter:
    """Feeds vLLM's Prometheus logger and gives its exposition, labelled with the replica's name and pool."""

    def __init__(self, config: VllmConfig, *, replica_id: str, pool: str):
        self._logger = PrometheusStatLogger(config, [ENGINE_INDEX])
        self._logger.log_engine_initialized()
        self._lora = LoRARequestStates(log_stats=False)
        self._legs: dict[str, _Leg] = {}
        self._label = f'engine="{ENGINE_INDEX}"', f'engine="{replica_id}",pool="{pool}"'

    def add(self, leg_id: str, prompt_tokens: int) -> None:
        self._legs[leg_id] = _Leg(prompt_tokens)

    def drop(self, leg_id: str) -> None:
        self._legs.pop(leg_id, None)

    def step(self, outputs: EngineCoreOutputs) -> None:
        """Account one engine step."""
        iteration = IterationStats()
        for output in outputs.outputs:
            leg = self._legs.get(output.request_id)
            if leg is None:
                continue
            iteration.update_from_output(
                output, outputs.timestamp, leg.prefilling, leg.stats, self._lora, lora_name=None
            )
            leg.prefilling = False
            if output.finish_reason is not None:
                iteration.update_from_finished_request(
                    output.finish_reason, output.request_id, leg.prompt_tokens, None, leg.stats
                )
        self._logger.record(outputs.scheduler_stats, iteration, engine_idx=ENGINE_INDEX)

    def exposition(self) -> str:
        """Prometheus text of the `vllm:*` families, and of Ferry's own of the connector."""
        families = _only_engines(generate_latest(REGISTRY).decode())
        return families.replace(*self._label)


def _only_engines(text: str) -> str:
    """Drop what other libraries registered in this process."""
    wanted = tuple(f"{head}{owner}:" for head in ("", "# HELP ", "# TYPE ") for owner in ("vllm", "ferry"))
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith(wanted))
