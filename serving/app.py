"""The composition root: settings → a Ray Serve application. The only place where rooms are wired together."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.engine.channel import ChannelKeys
from serving.engine.core import ENGINE_ENV, ModelFiles
from serving.engine.placement import place
from serving.engine.process import EngineSpec, free_port
from serving.errors import ConfigError
from serving.gateway.spec import GatewaySpec
from serving.settings import HttpSettings, Settings
from serving.types import PoolRole

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "ferry"
HEALTH_CHECK_PERIOD_S = 2.0
DRAIN_TIMEOUT_S = 40.0
CONTROLLER_STOP_TIMEOUT_S = 2.0
"""Ray waits for running calls, and those that watch the cluster run long; there is nothing to wait for."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What a deployment is made of beside its settings."""

    settings: Settings
    model: ModelFiles
    on_cpu: bool
    admin_token: str


def serve_environment(http: HttpSettings, run_dir: Path) -> dict[str, str]:
    """How Ray Serve should listen. It reads these when it is imported, in the launcher and in its own processes."""
    haproxy = "1" if http.proxy == "haproxy" else "0"
    return {
        # HAProxy in front, each gateway replica listening itself: no Python between a client and its stream.
        "RAY_SERVE_ENABLE_HA_PROXY": haproxy,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        # HAProxy's own pages; on Ray's fixed ports a second deployment on this machine could not start.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("0.0.0.0")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("0.0.0.0")),
        # How long streams outlive a reload of HAProxy, which every change of the gateways causes.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "600",
        # A gateway's event loop serves HTTP and the engine channels; a second loop would only add a hop per chunk.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def build(deployed: Deployed) -> Application:
    """The whole application: one controller, one deployment per pool, the gateways in front."""
    from ray import serve

    from serving.gateway.deployment import GatewayReplica
    from serving.pools.deployment import ControllerReplica

    settings = deployed.settings
    keys = ChannelKeys.derived_from(deployed.admin_token)
    controller = serve.deployment(
        name="controller",
        num_replicas=1,
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=CONTROLLER_STOP_TIMEOUT_S,
        ray_actor_options={"num_cpus": 0.01},
    )(ControllerReplica).bind(keys)
    pools = [_pool(deployed, name, keys, controller) for name in settings.pools]
    decoding = next(n for n, p in settings.pools.items() if p.role is not PoolRole.PREFILL)
    spec = GatewaySpec(
        settings=settings.gateway,
        engine=_engine_spec(deployed, decoding),
        admin_token=deployed.admin_token,
        needs_prefill=any(pool.role is PoolRole.PREFILL for pool in settings.pools.values()),
    )
    return serve.deployment(
        name="gateway",
        num_replicas=settings.gateway.replicas,
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=DRAIN_TIMEOUT_S,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": ENGINE_ENV}},
    )(GatewayReplica).bind(spec, keys, controller, *pools)


def _pool(deployed: Deployed, name: str, keys: ChannelKeys, controller: Application) -> Application:
    from ray import serve

    from serving.engine.deployment import EngineReplica

    pool = deployed.settings.pools[name]
    placement = place(deployed.settings.engine_of(name), on_cpu=deployed.on_cpu, resources=pool.resources)
    options = {"placement_group_bundles": placement.bundles, "placement_group_strategy": placement.strategy}
    return serve.deployment(
        name=name,
        num_replicas=pool.replicas,
        max_ongoing_requests=1_000,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=DRAIN_TIMEOUT_S,
        max_constructor_retry_count=1,
        ray_actor_options=placement.actor_options,
        **({k: v for k, v in options.items() if v is not None}),
    )(EngineReplica).bind(_engine_spec(deployed, name), pool.role, keys, controller)


def _engine_spec(deployed: Deployed, pool: str) -> EngineSpec:
    settings = deployed.settings.engine_of(pool)
    if (parser := deployed.settings.gateway.reasoning_parser) is not None:
        # Engines need it too: they do not hold what a model thinks to the grammar of its answer.
        settings = settings.model_copy(update={"args": {"reasoning_parser": parser} | settings.args})
    return EngineSpec(
        model=deployed.model,
        settings=settings,
        pool=pool,
        on_cpu=deployed.on_cpu,
    )


def from_config(arguments: dict[str, str]) -> Application:
    """Application builder for Serve config files and KubeRay: `import_path: serving.app:from_config`.

    `arguments`: `config`, the path of the settings; `plan`, that of a plan.yaml (default: none); `home`, where models
    are kept (default: the user's cache). Set
    FERRY_ADMIN_TOKEN where the application is built: with the same token, deploying again changes only what differs.
    """
    from serving.model_store import default_home, resolve
    from serving.settings import load

    plan = Path(arguments["plan"]) if "plan" in arguments else None
    settings = load(Path(arguments["config"]), os.environ, plan=plan)
    if settings.device == "auto":
        raise ConfigError(
            "device: auto would look at the node that builds the application, not at those that run engines",
            remedy="set device to gpu or cpu",
            field="device",
        )
    home = Path(arguments["home"]) if "home" in arguments else default_home()
    folder = resolve(settings.model, home)
    model = ModelFiles(path=folder.path, served_name=settings.served_model_name or folder.name)
    token = os.environ.get("FERRY_ADMIN_TOKEN") or secrets.token_urlsafe(24)
    return build(Deployed(settings=settings, model=model, on_cpu=settings.device == "cpu", admin_token=token))
