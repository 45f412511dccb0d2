"""Ferry as a Ray Serve config file deploys it, until standard input closes. A process of its own: Ray is global to one.

Each line of input is a JSON object: changes of the declared options of the deployment `mixed`, kept for the lines
after. The answer to each, and to the first declaration, is a line once all that was declared runs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving.app import APP_NAME, serve_environment
from serving.settings import load

RUNS_WITHIN_S = 240.0


def main(config: str, home: str) -> None:
    settings = load(Path(config), os.environ)
    with tempfile.TemporaryDirectory(prefix="ferry-", ignore_cleanup_errors=True) as folder:
        os.environ |= serve_environment(settings.http, Path(folder))
        import ray
        from ray import serve

        ray.init(include_dashboard=False, object_store_memory=128 << 20, num_cpus=4, log_to_driver=False)
        try:
            serve.start(http_options={"port": settings.http.port}, proxy_location="HeadOnly")
            options: dict[str, Any] = {}
            declare(config, home, options)
            for line in sys.stdin:
                options |= json.loads(line)
                declare(config, home, options)
        finally:
            serve.shutdown()
            ray.shutdown()


def declare(config: str, home: str, options: dict[str, Any]) -> None:
    """Deploy with these options of the pool, and say so when its replicas are as declared."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    application = {
        "name": APP_NAME,
        "route_prefix": "/",
        "import_path": "serving.app:from_config",
        "args": {"config": config, "home": home},
        "runtime_env": {"env_vars": {"FERRY_ADMIN_TOKEN": os.environ["FERRY_ADMIN_TOKEN"]}},
        "deployments": [{"name": "mixed", **options}] if options else [],
    }
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))
    deadline_s = time.monotonic() + RUNS_WITHIN_S
    while time.monotonic() < deadline_s:
        time.sleep(0.5)
        app = serve.status().applications.get(APP_NAME)
        if app is not None and app.status == "RUNNING" and _only_running(app):
            print("runs", flush=True)
            return
    raise TimeoutError(f"not as declared after {RUNS_WITHIN_S:.0f} s: {serve.status()}")


def _only_running(app: Any) -> bool:
    return all(
        deployment.status == "HEALTHY" and set(deployment.replica_states) == {"RUNNING"}
        for deployment in app.deployments.values()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
