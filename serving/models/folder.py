"""A model on disk in Hugging Face layout, and the check that vLLM will find what it needs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from planner import PlannerError, folder_weight_bytes, read_json_object, weight_files
from serving.errors import ModelInvalid

# Told what is being done now and, where it is known, the fraction done in 0..1.
Progress = Callable[[str, float | None], None]

# Any one of these sets is a tokenizer: fast, SentencePiece, byte-pair, Mistral's tekken.
TOKENIZER_SETS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",))
FOREIGN_WEIGHTS = (".gguf", ".bin", ".pth", ".pt")


class Source(StrEnum):
    """Who keeps the model's files."""

    BUILTIN = "built-in"
    HUB = "hub"
    LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A checked model: its files are complete. `name` is what clients will ask for."""

    path: Path
    name: str
    source: Source
    weight_bytes: int


def quiet(_stage: str, _fraction: float | None) -> None:
    """A Progress that tells nobody."""


def check_folder(path: Path, *, name: str, source: Source) -> ModelFolder:
    """Raises ModelInvalid that names everything missing, and any weight file that is cut off."""
    missing = missing_parts(path)
    if missing:
        raise ModelInvalid(f"{path} is not a complete model: no {', no '.join(missing)}", _remedy(path, source))
    try:
        read_json_object(path / "config.json")
        weight_bytes = folder_weight_bytes(path)
    except PlannerError as error:
        raise ModelInvalid(str(error), error.remedy) from error
    return ModelFolder(path=path, name=name, source=source, weight_bytes=weight_bytes)


def missing_parts(path: Path) -> tuple[str, ...]:
    """What a servable folder must have and this one lacks, in words."""
    missing = []
    if not (path / "config.json").is_file():
        missing.append("config.json")
    if not any(path.glob("*.safetensors*")):
        missing.append("*.safetensors weights")
    else:
        missing += [file.name for file in _named_weights(path) if not file.is_file()]
    if not any(all((path / file).is_file() for file in files) for files in TOKENIZER_SETS):
        missing.append("tokenizer (tokenizer.json or tokenizer.model)")
    return tuple(missing)


def _named_weights(path: Path) -> tuple[Path, ...]:
    try:
        return weight_files(path)
    except PlannerError as error:
        raise ModelInvalid(str(error), error.remedy) from error


def _remedy(path: Path, source: Source) -> str:
    foreign = sorted(file.name for file in path.iterdir() if file.suffix in FOREIGN_WEIGHTS)
    if foreign:
        return f"convert {foreign[0]} to safetensors with transformers' save_pretrained, then pass that folder"
    if source is Source.HUB:
        return "choose a repository with safetensors weights, or pull again with the network on"
    return "pass a folder written by transformers' save_pretrained (model and tokenizer), or a hub id org/name"
