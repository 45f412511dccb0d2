"""Tables of numbers as dataclasses of arrays: one element per configuration, no object per configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Table:
    """Base of frozen dataclasses whose fields are all arrays of one length."""

    @classmethod
    def row(cls, **figures: float) -> Self:
        """A table of one configuration."""
        return cls(**{name: np.array([value], float) for name, value in figures.items()})

    @classmethod
    def stack(cls, tables: Sequence[Self]) -> Self:
        """All rows of `tables`, in order. At least one is needed."""
        names = [field.name for field in fields(tables[0])]  # type: ignore[arg-type]
        return cls(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        """The chosen rows; an index may come more than once."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: getattr(self, name)[rows] for name in names})


def soft_max(first: Array, second: Array, sharpness: float) -> Array:
    """Between max (sharpness infinite) and sum (1): how two resources that overlap in part add up."""
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    return np.asarray(larger * (1 + ratio**sharpness) ** (1 / sharpness))
