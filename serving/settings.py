"""Settings: one frozen tree, read once from YAML and the environment, handed down in parts.

Precedence, highest first: `FERRY_*` environment variables (`FERRY_HTTP__PORT=9000`; nested keys joined by two
underscores), the YAML file, defaults. A plan stands beside the file, which must not contradict it. Unknown keys are
refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from serving.errors import ConfigError
from serving.planned import joined, planned_settings
from serving.types import PoolRole

ENV_PREFIX = "FERRY_"


class Part(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HttpSettings(Part):
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 for every interface."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the OpenAI-compatible endpoint."""
    proxy: Literal["haproxy", "python"] = "haproxy"
    """Ray Serve's HTTP proxy in front of the gateways."""
    proxy_location: Literal["HeadOnly", "EveryNode"] | None = None
    """Nodes that run a proxy; null: the head of a cluster started here, every node of one that is joined."""


class GatewaySettings(Part):
    replicas: Annotated[int, Field(ge=1)] = 1
    """Gateway replicas, side by side behind the proxy."""
    disaggregate_from_tokens: Annotated[int, Field(ge=1)] = 64
    """Prompts shorter than this run whole on a decode engine."""
    tool_call_parser: str | None = "hermes"
    """vLLM's parser of tool calls; null turns tools with `tool_choice: auto` off."""
    reasoning_parser: str | None = None
    """vLLM's parser of reasoning text; the engines are told of it too, so that grammars leave the thinking alone."""
    chat_template: str | None = None
    """Path of a Jinja template that replaces the model's own."""
    engine_wait_s: Annotated[float, Field(gt=0)] = 10.0
    """How long a request waits for an engine when none is ready, before it fails with 503."""
    moves_at_once: Annotated[int, Field(ge=1)] = 2
    """Moves that one gateway carries out side by side; the others wait while they decode on."""
    args: dict[str, Any] = {}
    """More arguments of vLLM's OpenAI front end, by their Python names; vLLM checks them."""


class EngineSettings(Part):
    max_model_len: Annotated[int, Field(ge=16)] = 4096
    """Context length in tokens: prompt and output together."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 64
    """Most requests in one engine step."""
    max_num_batched_tokens: Annotated[int, Field(ge=16)] = 2048
    """Token budget of one engine step: the chunk size of prefill."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """Type of weights and activations."""
    block_size: Annotated[int, Field(ge=1)] | None = None
    """KV block size in tokens; null takes vLLM's default for the device."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """KV cache size. Needed on CPU; on GPU null takes what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory for weights, activations and KV."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Groups of GPUs that share the layers among them."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts faster, decodes slower."""
    kv_checksum: Literal["off", "moves"] = "off"
    """moves: KV that comes from another engine is checked before anything runs on it, and computed anew where it is not
    what was lent. On CPU that costs either end 1 to 4 ms per 1,000 tokens of a 135M model, beside its steps."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long an engine may load before its start counts as failed and its processes are killed."""
    env: dict[str, str] = {}
    """Environment of the engine processes (UCX_*, OMP_NUM_THREADS, …)."""
    args: dict[str, Any] = {}
    """More vLLM engine arguments by their Python names; vLLM checks them."""

    @property
    def context_tokens(self) -> Any:
        """The longest context that vLLM will be told of: `args` go over the settings above."""
        return self.args.get("max_model_len", self.max_model_len)


class PoolSettings(Part):
    role: PoolRole
    """prefill, decode, or mixed (both)."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Engine replicas in the pool."""
    engine: dict[str, Any] = {}
    """What differs from the shared `engine` settings. max_model_len may not differ between pools."""
    resources: dict[str, float] = {}
    """Ray custom resources that one replica takes; places a pool on chosen nodes."""


class RaySettings(Part):
    address: str | None = None
    """A running cluster (`auto` or host:port); null starts one here."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs of the local cluster; null counts the machine's."""


class Settings(Part):
    """The whole tree."""

    model: str = "smollm2-135m"
    """A built-in name, a folder in Hugging Face layout, or a hub id."""
    served_model_name: str | None = None
    """Name that clients use; null takes the model's own name."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What engines run on; auto takes a GPU where vLLM sees one."""
    http: HttpSettings = HttpSettings()
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    pools: dict[str, PoolSettings] = {
        "prefill": PoolSettings(role=PoolRole.PREFILL),
        "decode": PoolSettings(role=PoolRole.DECODE),
    }
    """Pools by name."""
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _pools_can_serve(self) -> Settings:
        roles = {pool.role for pool in self.pools.values()}
        if not roles & {PoolRole.DECODE, PoolRole.MIXED}:
            raise ValueError("pools: no pool can decode; add one with role decode or mixed")
        for name in self.pools:
            try:
                self.engine_of(name)
            except ValidationError as error:
                raise _below(error, "pools", name, "engine") from None
        self._contexts_fit_everywhere()
        return self

    def _contexts_fit_everywhere(self) -> None:
        """A context may come to any engine, and one that it is too long for would end."""
        lengths = {name: self.engine_of(name).context_tokens for name in self.pools}
        first = next(iter(lengths.values()))
        if all(tokens == first for tokens in lengths.values()):
            return
        name = next(name for name, tokens in lengths.items() if tokens != self.engine.context_tokens)
        shown = ", ".join(f"{pool} {tokens}" for pool, tokens in lengths.items())
        finding = PydanticCustomError(
            "unequal_lengths",
            "a context must fit into the engines of every pool ({shown}); say max_model_len once, under `engine`",
            {"shown": shown},
        )
        place = ("pools", name, "engine", "max_model_len")
        raise ValidationError.from_exception_data(
            "Settings", [InitErrorDetails(type=finding, loc=place, input=lengths[name])]
        )

    def engine_of(self, pool: str) -> EngineSettings:
        """The engine settings of one pool: the shared ones with the pool's differences."""
        shared = self.engine.model_dump()
        own = self.pools[pool].engine
        merged = shared | own
        for mapping in ("env", "args"):
            if isinstance(own.get(mapping), dict):
                merged[mapping] = shared[mapping] | own[mapping]
        return EngineSettings.model_validate(merged)


def load(path: Path | None, environ: Mapping[str, str], *, plan: Path | None = None) -> Settings:
    """Read the tree. What a plan decides the file may say too, but not otherwise.

    Raises:
        ConfigError: names the file, the key, what is wrong, and the remedy.
    """
    tree = _read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "defaults"
    if plan is not None:
        planned = planned_settings(plan, model=environ.get(f"{ENV_PREFIX}MODEL"))
        tree = joined(tree, planned, config_file=source, plan_file=str(plan))
        source = str(plan) if path is None else f"{source} with {plan}"
    for keys, value in _from_environment(environ):
        _put(tree, keys, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, source) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy="pass --config with a readable file") from None
    tree = _parse(text, source=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a mapping of settings is needed", remedy="start from configs/local.yaml")
    return tree


def _parse(text: str, *, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}", remedy=f"mend {source}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[list[str], Any]]:
    """`FERRY_HTTP__PORT=9000` sets http.port. Names that are no setting (FERRY_DATA, …) are left alone."""
    for name, text in sorted(environ.items()):
        keys = _keys(name.removeprefix(ENV_PREFIX))
        if name.startswith(ENV_PREFIX) and keys[0] in Settings.model_fields:
            yield keys, _parse(text, source=name)


def _keys(name: str) -> list[str]:
    """Setting names are lower case; names of environment variables, below `env`, are their owner's."""
    parts = name.split("__")
    lowered = [part.lower() for part in parts]
    cut = lowered.index("env") + 1 if "env" in lowered else len(parts)
    return lowered[:cut] + parts[cut:]


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def _below(error: ValidationError, *place: str) -> ValidationError:
    """The same findings, named from the root of the tree."""
    findings = [
        InitErrorDetails(type=f["type"], loc=(*place, *f["loc"]), input=f["input"], ctx=f.get("ctx", {}))
        for f in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, findings)


def _explain(error: ValidationError, source: str) -> ConfigError:
    """The first finding in words: unknown keys with the nearest valid name, other values with what was wrong."""
    finding = error.errors()[0]
    location = [str(part) for part in finding["loc"]]
    key = ".".join(location)
    if finding["type"] == "extra_forbidden":
        valid = _valid_names(location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(sorted(valid))}"
        return ConfigError(f"{source}: unknown setting `{key}`", remedy=hint, field=key)
    message = finding["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(finding["input"], dict | BaseModel) else f" (got {finding['input']!r})"
    return ConfigError(f"{source}: {key or 'settings'}: {message}{shown}", remedy="change that value", field=key)


def _valid_names(location: list[str]) -> list[str]:
    """Setting names at a place in the tree; pool names are free, so they stand for themselves."""
    part: type[BaseModel] = Settings
    for key in location:
        if key in part.model_fields:
            annotation = part.model_fields[key].annotation
            part = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else PoolSettings
    if location and location[-1] == "engine" and len(location) > 1:
        part = EngineSettings
    return list(part.model_fields)
