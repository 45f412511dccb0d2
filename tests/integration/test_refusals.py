"""Bad input to `ferry up`: one line with the remedy, exit code 2, nothing left running."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import config_file, ferry, free_port


def children_of_this_test() -> set[int]:
    return {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}


def refused(*arguments: str, **environ: str) -> str:
    before = children_of_this_test()
    said = ferry("up", *arguments, timeout_s=120, **environ)
    output = said.stdout + said.stderr
    assert said.returncode == 2, output
    assert "error: " in output and "remedy: " in output and "Traceback" not in output, output
    assert children_of_this_test() <= before
    return output


@pytest.mark.slow
def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        output = refused("--config", str(config_file(tmp_path)), "--port", str(holder.getsockname()[1]))
    assert "--port" in output


@pytest.mark.slow
def test_a_missing_model(tmp_path: Path) -> None:
    assert "smollm2-135m" in refused("--model", "smollm2-135n", "--port", str(free_port()))
    assert "/no/such/folder" in refused("--model", "/no/such/folder", "--port", str(free_port()))


@pytest.mark.slow
def test_a_dead_ray_address() -> None:
    output = refused("--ray-address", f"127.0.0.1:{free_port()}", "--port", str(free_port()))
    assert "no Ray cluster answers" in output


@pytest.mark.slow
def test_an_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    path = config_file(tmp_path, engine={"max_model_length": 100})
    assert "did you mean `max_model_len`?" in refused("--config", str(path))


@pytest.mark.slow
def test_engines_that_do_not_fit_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    path = config_file(tmp_path, engine={"kv_cache_gib": 500})
    output = refused("--config", str(path), "--port", str(free_port()))
    assert "weights" in output and "KV cache" in output and "500.00 GiB" in output


@pytest.mark.slow
@pytest.mark.real
def test_an_engine_that_dies_at_start_shows_its_cause(tmp_path: Path) -> None:
    pools = {"mixed": {"role": "mixed", "replicas": 1}}
    path = config_file(tmp_path, engine={"args": {"load_format": "no_such_format"}}, pools=pools)
    output = refused("--config", str(path), "--port", str(free_port()))
    assert "no_such_format" in output, output
