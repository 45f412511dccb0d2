"""Model names -> shapes: public models that ship with the planner, or any folder with a config.json.

Names are compared without their owner, case and punctuation. What makers append for a tuned copy (`-Instruct`,
`-Chat`) is dropped; what they append for a quantised one (`-FP8`, `-AWQ`) becomes the shape's quantisation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from planner.config import shape_from_config
from planner.files import read_shape, read_yaml_object
from planner.models import ModelShape
from planner.reader import Reader
from planner.types import PlannerError

SHAPES_FOLDER = Path(__file__).parent / "shapes"

# `-0528` and `-2507` are dates of releases.
TUNED = re.compile(r"[-_](?:instruct|chat|it|base|hf|thinking|\d{4})$", re.IGNORECASE)
QUANTISED: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "fp8",
        "fp8-dynamic": "fp8_channel",
        "int8": "int8",
        "w8a8": "int8",
        "quantized.w8a8": "int8",
        "w4a16": "int4",
        "quantized.w4a16": "int4",
        "gptq": "int4",
        "gptq-int4": "int4",
        "awq": "int4_awq",
        "awq-int4": "int4_awq",
        "int4": "int4",
        "fp4": "nvfp4",
        "nvfp4": "nvfp4",
        "mxfp4": "mxfp4",
        "bf16": "bfloat16",
    }
)
_SUFFIX = re.compile(rf"[-_]({'|'.join(map(re.escape, sorted(QUANTISED, key=len, reverse=True)))})$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """One shipped shape: the names it goes by, where its figures come from, and its published parameters."""

    names: tuple[str, ...]
    source: str
    params: int
    shape: ModelShape


def shape_of_model(name: str | Path) -> ModelShape:
    """The shape of a public model or of a folder in Hugging Face layout. Raises PlannerError naming near names."""
    folder = Path(name)
    if (folder / "config.json").is_file():
        return read_shape(folder)
    models = _index()
    base, suffix = _split(str(name))
    for key, stored in ((_key(str(name)), None), (_key(base), suffix), (_key(_untuned(base)), suffix)):
        if key in models:
            return models[key].shape.quantised(stored)
    raise _unknown(str(name))


def public_models() -> tuple[PublicModel, ...]:
    """All models that ship with the planner, by file name. Raises PlannerError for a broken file."""
    return tuple(_read(path) for path in sorted(SHAPES_FOLDER.glob("*.yaml")))


def _read(path: Path) -> PublicModel:
    reader = Reader(config=read_yaml_object(path), file=path.name)
    names = tuple(str(name) for name in reader.items("names"))
    if not names:
        raise reader.error("names", "at least one name is needed")
    config = reader.section("config").config
    return PublicModel(
        names=names,
        source=reader.text("source", default=""),
        params=reader.whole("params"),
        shape=shape_from_config(config, file=path.name, name=names[0]),
    )


@cache
def _index() -> Mapping[str, PublicModel]:
    """Built once: the files ship with the code, so they cannot change under a running process."""
    return MappingProxyType({_key(name): model for model in public_models() for name in model.names})


def _split(name: str) -> tuple[str, str | None]:
    found = _SUFFIX.search(name)
    return (name, None) if found is None else (name[: found.start()], QUANTISED[found[1].lower()])


def _untuned(name: str) -> str:
    shorter = TUNED.sub("", name)
    return name if shorter == name else _untuned(shorter)


def _key(name: str) -> str:
    """`meta-llama/Meta-Llama-3.1-8B` and `llama3.1 8b` are one model."""
    last = name if " " in name else name.rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.]", "", last.lower()).removeprefix("meta")


def _nearest(name: str) -> Iterator[str]:
    keys = _index()
    for key in difflib.get_close_matches(_key(_untuned(_split(name)[0])), list(keys), n=3, cutoff=0.5):
        yield keys[key].names[0]


def _unknown(name: str) -> PlannerError:
    near = ", ".join(dict.fromkeys(_nearest(name)))
    problem = f"no shape of this name ships with the planner{f'; near are {near}' if near else ''}"
    remedy = "name a shipped model, or a folder that holds the model's config.json"
    return PlannerError("settings", "model", name, problem, remedy)
