"""Typed access to one config; every refusal names the file, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from planner.types import PlannerError


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A parsed JSON or YAML object and the name of its file. Every method raises PlannerError for odd values."""

    config: Mapping[str, object]
    file: str

    def has(self, key: str) -> bool:
        return self.config.get(key) is not None

    def first(self, *keys: str) -> str:
        """The first of `keys` that the config holds; the first of all if it holds none."""
        return next((key for key in keys if self.has(key)), keys[0])

    def count(self, key: str, *, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not _is_whole(value) or value < 1:
            raise self.error(key, "a positive whole number is needed")
        return value

    def whole(self, key: str, *, default: int = 0) -> int:
        """A whole number, 0 allowed."""
        value = self.config.get(key)
        if value is None:
            return default
        if not _is_whole(value) or value < 0:
            raise self.error(key, "a whole number is needed")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a text is needed")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def items(self, key: str) -> list[object]:
        """A list; empty if the key is missing."""
        value = self.config.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, "a list is needed")
        return value

    def section(self, key: str) -> Reader:
        """An object within this one; empty if the key is missing."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object is needed")
        return Reader(config=value or {}, file=self.file)

    def error(self, key: str, problem: str, *, remedy: str = "") -> PlannerError:
        remedy = remedy or f"correct {key} in {self.file}, or fetch the model's original config.json"
        return PlannerError(self.file, key, self.config.get(key), problem, remedy)


def _is_whole(value: object) -> TypeGuard[int]:
    # In Python True is an int; in a config it is a mistake.
    return isinstance(value, int) and not isinstance(value, bool)
