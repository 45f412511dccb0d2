"""Words that all of the planner shares: its one error, and the sizes of number types."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GIB = 1024**3

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "float32": 4,
        "bfloat16": 2,
        "float16": 2,
        "half": 2,
        "float8_e4m3fn": 1,
        "float8_e5m2": 1,
        "fp8": 1,
        "fp8_e4m3": 1,
        "fp8_e5m2": 1,
    }
)


class PlannerError(Exception):
    """A value the planner cannot plan with: where it stands, what it is, why it is odd and what to do.

    `key` is empty when the whole file is at fault.
    """

    def __init__(self, file: str, key: str, value: object, problem: str, remedy: str) -> None:
        # All five stay in `args`, so that the error survives pickling.
        super().__init__(file, key, value, problem, remedy)
        self.file = file
        self.key = key
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        if not self.key:
            return f"{self.file} {self.problem}"
        shown = "missing" if self.value is None else f"{self.value!r}"
        return f"{self.file}: {self.key} is {shown}: {self.problem}"


def dtype_bytes(dtype: str, *, file: str = "settings", key: str = "dtype") -> int:
    """Bytes of one number of `dtype` (`torch.` in front is allowed). Raises PlannerError if unknown."""
    size_bytes = DTYPE_BYTES.get(dtype.removeprefix("torch."))
    if size_bytes is None:
        known = ", ".join(DTYPE_BYTES)
        raise PlannerError(file, key, dtype, "not a number type we know", f"use one of: {known}")
    return size_bytes
