"""Settings: what is read from where, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.errors import ConfigError
from serving.settings import Settings, load
from serving.types import PoolRole

ROOT = Path(__file__).resolve().parents[2]
# The planner's documents beside them carry their kind in front: slo.chat.yaml.
DOCUMENTS = ("slo.", "workload.", "device.", "prices.", "question.")
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith(DOCUMENTS))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "ferry.yaml"


def test_there_are_configs() -> None:
    assert "local.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    settings = load(path, {})
    for pool in settings.pools:
        assert settings.engine_of(pool).max_model_len <= settings.engine.max_model_len


def test_without_a_file_there_are_defaults(config: Path) -> None:
    config.write_text("")
    assert load(None, {}) == load(config, {}) == Settings()
    assert {pool.role for pool in Settings().pools.values()} == {PoolRole.PREFILL, PoolRole.DECODE}


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("modle: x", "modle", "model"),
        ("http: {prot: 1}", "http.prot", "port"),
        ("gateway: {replica: 1}", "gateway.replica", "replicas"),
        ("engine: {max_num_seq: 1}", "engine.max_num_seq", "max_num_seqs"),
        ("ray: {adress: auto}", "ray.adress", "address"),
        ("pools: {d: {role: decode, replica: 1}}", "pools.d.replica", "replicas"),
        ("pools: {d: {role: decode, engine: {max_num_seq: 1}}}", "pools.d.engine.max_num_seq", "max_num_seqs"),
        ("pools: {engine: {role: decode, engine: {dtpe: x}}}", "pools.engine.engine.dtpe", "dtype"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_name(config: Path, text: str, key: str, near: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, {})
    assert caught.value.field == key
    assert f"`{key}`" in caught.value.message and str(config) in caught.value.message
    assert caught.value.remedy == f"did you mean `{near}`?"


def test_a_key_like_no_other_is_answered_with_all_names(config: Path) -> None:
    config.write_text("http: {zzzzzz: 1}")
    with pytest.raises(ConfigError) as caught:
        load(config, {})
    assert caught.value.remedy.startswith("valid here: ") and "port" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("http: {port: 0}", "http.port"),
        ("http: {port: many}", "http.port"),
        ("http: 3", "http"),
        ("http:", "http"),
        ("model: 3", "model"),
        ("device: tpu", "device"),
        ("engine: {gpu_memory_utilization: 1.5}", "engine.gpu_memory_utilization"),
        ("gateway: {engine_wait_s: .nan}", "gateway.engine_wait_s"),
        ("pools: {d: {role: dcode}}", "pools.d.role"),
        ("pools: {d: {}}", "pools.d.role"),
        ("pools: {d: {role: decode, replicas: 0}}", "pools.d.replicas"),
        ("pools: {d: {role: decode, engine: {max_num_seqs: 0}}}", "pools.d.engine.max_num_seqs"),
        ("pools: {d: {role: decode, engine: {env: 3}}}", "pools.d.engine.env"),
        ("pools: {d: {role: decode, engine: {args: [a]}}}", "pools.d.engine.args"),
        ("pools: {d: {role: decode, engine: {env: {A: 3}}}}", "pools.d.engine.env.A"),
        ("1: 2", "1"),
    ],
)
def test_a_bad_value_names_its_key(config: Path, text: str, key: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, {})
    assert caught.value.field == key
    assert f"{config}: {key}: " in caught.value.message


@pytest.mark.parametrize("pools", ["{}", "{p: {role: prefill}}"])
def test_pools_that_cannot_decode_are_refused(config: Path, pools: str) -> None:
    config.write_text(f"pools: {pools}")
    with pytest.raises(ConfigError, match="no pool can decode"):
        load(config, {})


PREFILL_AND = "pools: {p: {role: prefill, engine: {%s}}, d: {role: decode, engine: {%s}}}"


@pytest.mark.parametrize(
    ("prefill", "decode", "named"),
    [
        ("max_model_len: 2048", "", "p"),
        ("", "max_model_len: 2048", "d"),
        ("max_model_len: 2048", "max_model_len: 8192", "p"),
        ("args: {max_model_len: 2048}", "", "p"),
        ("args: {max_model_len: 32k}", "", "p"),
    ],
)
def test_pools_that_take_contexts_of_different_lengths_are_refused(
    config: Path, prefill: str, decode: str, named: str
) -> None:
    config.write_text(PREFILL_AND % (prefill, decode))
    with pytest.raises(ConfigError, match=r"every pool .*once, under `engine`") as caught:
        load(config, {})
    assert caught.value.field == f"pools.{named}.engine.max_model_len"


@pytest.mark.parametrize("own", ["", "max_model_len: 4096", "max_model_len: 2048", "args: {max_model_len: 2048}"])
def test_pools_that_take_the_same_contexts_may_say_so_each(config: Path, own: str) -> None:
    config.write_text(PREFILL_AND % (own, own))
    assert load(config, {}).engine_of("p") == load(config, {}).engine_of("d")


@pytest.mark.parametrize("text", ["[1]", "a: [", "just words", "\tx: 1"])
def test_what_is_no_tree_is_refused(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, {})
    assert str(config) in caught.value.message and "\n" not in caught.value.message


def test_a_missing_file_is_named(config: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load(config, {})
    assert str(config) in caught.value.message


@pytest.mark.parametrize("text", ["", "http: {port: 9001, host: 0.0.0.0}", "http:"])
def test_the_environment_wins_over_the_file(config: Path, text: str) -> None:
    config.write_text(text)
    settings = load(config, {"FERRY_HTTP__PORT": "9000", "FERRY_MODEL": "other"})
    assert (settings.http.port, settings.model) == (9000, "other")
    assert settings.http.host == ("0.0.0.0" if "host" in text else "127.0.0.1")


def test_the_environment_reaches_pools_and_lists(config: Path) -> None:
    config.write_text("pools: {decode: {role: decode}}")
    environ = {"FERRY_POOLS__DECODE__REPLICAS": "3", "FERRY_ENGINE__KV_CACHE_GIB": "null"}
    settings = load(config, environ)
    assert (settings.pools["decode"].replicas, settings.engine.kv_cache_gib) == (3, None)


@pytest.mark.parametrize("name", ["FERRY_DATA", "FERRY_ADMIN_TOKEN", "FERRY_", "FERRY", "HTTP__PORT", "PATH"])
def test_other_variables_are_left_alone(name: str) -> None:
    assert load(None, {name: "x"}) == Settings()


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"FERRY_HTTP__PROT": "1"}, "http.prot"),
        ({"FERRY_HTTP__PORT": "many"}, "http.port"),
        ({"FERRY_MODEL": "["}, "FERRY_MODEL"),
        ({"FERRY_MODEL": "a", "FERRY_MODEL__X": "b"}, "model"),
        ({"FERRY_HTTP": "a"}, "http"),
    ],
)
def test_mistakes_in_the_environment_are_named(environ: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    assert word in caught.value.message


def test_settings_are_frozen() -> None:
    settings = Settings()
    for part, field in ((settings, "model"), (settings.http, "port"), (settings.pools["decode"], "replicas")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


def test_a_pool_differs_from_the_shared_engine_only_where_it_says(config: Path) -> None:
    config.write_text(
        "engine: {max_num_seqs: 8, env: {A: '1', B: '2'}, args: {seed: 1}}\n"
        "pools: {d: {role: decode, engine: {max_num_seqs: 16, env: {B: '3'}}}, p: {role: prefill}}"
    )
    settings = load(config, {})
    assert settings.engine_of("p") == settings.engine
    d = settings.engine_of("d")
    assert (d.max_num_seqs, d.env, d.args) == (16, {"A": "1", "B": "3"}, {"seed": 1})
    assert d.max_model_len == settings.engine.max_model_len
    assert settings.engine.env == {"A": "1", "B": "2"}
