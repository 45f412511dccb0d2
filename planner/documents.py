"""The base of every document we read: frozen, strict, and refused with a remedy instead of a traceback.

A document class says in `Field(description=...)` what a key means; the remedy of a missing key quotes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from planner.types import PlannerError

D = TypeVar("D", bound="Document")
T = TypeVar("T")

# YAML has lists where our frozen documents have tuples; the elements stay strict.
Row = Annotated[tuple[T, ...], Field(strict=False)]

REFUSED = "refused_by_document"


class Document(BaseModel):
    """Frozen; unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        for key in data:
            if key not in cls.model_fields:
                refuse(str(key), data[key], "is not a known key", nearest(str(key), cls.model_fields))
        return data


def refuse(key: str, value: object, problem: str, remedy: str) -> NoReturn:
    """For validators: the document's `key` holds `value`, which cannot be. Never returns."""
    raise PydanticCustomError(REFUSED, "{problem}", {"key": key, "value": value, "problem": problem, "remedy": remedy})


def validated(document: type[D], data: object, *, file: str) -> D:
    """`data` (parsed YAML or JSON) as a `document`. Raises PlannerError, with `file`, for the first odd thing."""
    try:
        return document.model_validate(data)
    except ValidationError as error:
        raise _planner_error(error, data, file) from None


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...], *, shown: int = 12) -> str:
    """A remedy that names the valid words closest to `name`, or all of them if none is close."""
    close = get_close_matches(name.lower(), [word for word in known], n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    words = sorted(known)
    more = f", … ({len(words)} in all)" if len(words) > shown else ""
    return f"use one of: {', '.join(words[:shown])}{more}"


def _planner_error(error: ValidationError, data: object, file: str) -> PlannerError:
    problems = error.errors(include_url=False)
    first = problems[0]
    path = _path(first, data)
    if first["type"] == REFUSED:
        context = first["ctx"]
        key = ".".join([*path, *([context["key"]] if context["key"] else [])])
        value, problem, remedy = context["value"], context["problem"], context["remedy"]
    else:
        key, value = ".".join(path), first["input"]
        problem = first["msg"].replace("Input should", "it should").rstrip(".")
        remedy = f"correct {key or 'it'} in {file}"
        if first["type"] == "missing":
            value, problem, remedy = None, "it is needed", f"add {key} to {file}"
    if len(problems) > 1:
        remedy += f" (and {len(problems) - 1} more to correct)"
    return PlannerError(file, key, _short(value), problem, remedy)


def _path(problem: ErrorDetails, data: object) -> list[str]:
    """The keys that lead to the problem as a person sees them: pydantic's names of union members are left out."""
    path = []
    last = len(problem["loc"]) - 1
    for at, step in enumerate(problem["loc"]):
        below = dict(data) if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, list) else {}
        if step in below:
            data = below[step]
        elif at != last or problem["type"] != "missing":
            continue
        path.append(str(step))
    return path


def _short(value: object, *, limit: int = 80) -> object:
    """Values are quoted in messages, so a long one is cut."""
    shown = repr(value)
    return value if len(shown) <= limit else f"{shown[: limit - 1]}…"
