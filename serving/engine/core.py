"""The vLLM door: from settings to a running engine core in a child process.

The core, its workers and vLLM's own client to them are vLLM's; this file only says how to start them for Ferry.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.engine.plugin import SLEEPING_WAITS
from serving.errors import ConfigError
from serving.settings import EngineSettings
from serving.types import EngineInfo, KvIdentity

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.config import VllmConfig
    from vllm.v1.engine.core_client import AsyncMPClient

GIB = 1 << 30
CHECKS_TRANSFERS = "ferry_checks_transfers"
"""Key of the connector's extra configuration: whether what it pulls is checked."""

# Handed to every engine process. UCX's registration cache leaks without a bound when NIXL is imported before vLLM
# sets it (vllm/distributed/nixl_utils.py); the others keep engines from phoning out.
ENGINE_ENV = {
    "UCX_RCACHE_MAX_UNRELEASED": "1024",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
CPU_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
CPU_ENGINE_ENV = {"OMP_NUM_THREADS": "1", CPU_BINDING: "nobind", SLEEPING_WAITS: "1"}
# vLLM compiles some of its sampler all the same: with a C++ compiler, at the first request that samples or wants
# logprobs, which then waits for 10 to 20 s.
EAGER_ENV = {"TORCH_COMPILE_DISABLE": "1"}
IN_CORE_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The model that every engine of a deployment serves."""

    path: Path
    served_name: str


def engine_args(
    model: ModelFiles, settings: EngineSettings, *, on_cpu: bool, kv_engine_id: str | None = None
) -> AsyncEngineArgs:
    """vLLM's arguments for one engine; without `kv_engine_id`, for a front end that owns no KV.

    Raises:
        ConfigError: when `engine.args` names something that vLLM does not have.
    """
    from vllm import AsyncEngineArgs

    arguments: dict[str, Any] = {
        "model": str(model.path),
        "served_model_name": model.served_name,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "dtype": settings.dtype,
        "block_size": settings.block_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "enforce_eager": settings.enforce_eager,
        "worker_extension_cls": "serving.engine.worker.WorkerExtension",
    }
    if settings.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * GIB)
    if on_cpu and _runs_in_core(settings):
        arguments["distributed_executor_backend"] = IN_CORE_EXECUTOR
    if kv_engine_id is not None:
        arguments["kv_transfer_config"] = _kv_transfer(kv_engine_id, settings, on_cpu=on_cpu)
    unknown = set(settings.args) - set(AsyncEngineArgs.__dataclass_fields__)
    if unknown:
        raise ConfigError(
            f"engine.args: vLLM has no argument {sorted(unknown)[0]!r}",
            remedy="use a field of vllm.AsyncEngineArgs",
            field="engine.args",
        )
    return AsyncEngineArgs(**(arguments | settings.args))


def _runs_in_core(settings: EngineSettings) -> bool:
    """Whether a lone CPU worker may live in the core's process: it saves a process, 0.45 GiB and a third of the start.

    vLLM gives every CPU worker a process because OpenMP's binding must be in the environment before torch is loaded;
    without a binding nothing is lost.
    """
    binding = {**CPU_ENGINE_ENV, **settings.env}[CPU_BINDING]
    return binding == "nobind" and settings.tensor_parallel_size * settings.pipeline_parallel_size == 1


def _kv_transfer(engine_id: str, settings: EngineSettings, *, on_cpu: bool) -> Any:
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector="NixlConnector",
        kv_connector_module_path="serving.engine.connector",
        # Every engine may be the source or the destination of a move.
        kv_role="kv_both",
        engine_id=engine_id,
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={CHECKS_TRANSFERS: settings.kv_checksum == "moves"},
        **({"kv_buffer_device": "cpu"} if on_cpu else {}),
    )


def engine_config(args: AsyncEngineArgs) -> VllmConfig:
    """The checked configuration, with the scheduler that can resume contexts."""
    config = args.create_engine_config()
    kind = "Async" if config.scheduler_config.async_scheduling else "Sync"
    config.scheduler_config.scheduler_cls = f"serving.engine.resume.Resuming{kind}Scheduler"
    return config


def start(config: VllmConfig) -> AsyncMPClient:
    """Start the core and wait until it has loaded (blocks for many seconds). Call inside a running event loop."""
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.executor import Executor

    return AsyncMPClient(config, Executor.get_class(config), log_stats=True)


def new_kv_engine_id() -> str:
    """A NIXL engine id that no other engine of the cluster has."""
    return uuid.uuid4().hex


async def describe(client: AsyncMPClient, *, host: str, side_channel_port: int) -> EngineInfo:
    """What a started engine is, as it reported at its start."""
    config = client.vllm_config
    block_bytes: list[int] = await client.collective_rpc_async("ferry_kv_block_bytes")
    assert config.kv_transfer_config is not None and config.kv_transfer_config.engine_id is not None
    return EngineInfo(
        block_size_tokens=config.cache_config.block_size,
        num_kv_blocks=config.cache_config.num_gpu_blocks or 0,
        kv_block_bytes=sum(block_bytes),
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_model_len=config.model_config.max_model_len,
        kv=KvIdentity(
            engine_id=config.kv_transfer_config.engine_id,
            host=host,
            port=side_channel_port,
            tp_size=config.parallel_config.tensor_parallel_size,
            pp_size=config.parallel_config.pipeline_parallel_size,
        ),
    )
