"""How long prompts (ISL) and answers (OSL) are, together: laws from which lengths are drawn, in tokens.

Every law maps uniform numbers to lengths. The same numbers give the same lengths on every machine and NumPy, and
the first n requests do not depend on how many are drawn.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import scipy  # its parts load when they are named, and most laws need none
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from planner.documents import Document, Row, refuse

Uniforms = NDArray[np.float64]
Tokens = NDArray[np.int64]

# Uniform numbers that one request's lengths take: ISL, OSL, and which part of a mixture.
LENGTH_DRAWS = 3

# Longer than any context window; a law with a heavy tail must not draw absurd lengths.
MAX_TOKENS = 10_000_000
Count = Annotated[int, Field(gt=0, le=MAX_TOKENS)]


class Constant(Document):
    """Every request alike."""

    kind: Literal["constant"]
    isl: Count
    osl: Count

    def draw(self, uniforms: Uniforms) -> tuple[Tokens, Tokens]:
        n = len(uniforms)
        return np.full(n, self.isl, dtype=np.int64), np.full(n, self.osl, dtype=np.int64)


class Uniform(Document):
    """Each length uniform between two bounds, both included, as benchmark tools with a range ratio draw it."""

    kind: Literal["uniform"]
    isl: Row[Count]
    osl: Row[Count]

    @model_validator(mode="after")
    def _two_bounds(self) -> Self:
        for key, bounds in (("isl", self.isl), ("osl", self.osl)):
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                refuse(key, bounds, "two bounds are needed, the lower first", f"write {key}: [low, high]")
        return self

    def draw(self, uniforms: Uniforms) -> tuple[Tokens, Tokens]:
        return _between(self.isl, uniforms[:, 0]), _between(self.osl, uniforms[:, 1])


class Spread(Document):
    """One length of a lognormal law: its mean and coefficient of variation (standard deviation / mean)."""

    mean: PositiveFloat
    cv: NonNegativeFloat
    min: PositiveInt = 1
    max: PositiveInt = MAX_TOKENS

    @model_validator(mode="after")
    def _mean_within_bounds(self) -> Self:
        if not self.min <= self.mean <= self.max:
            refuse("mean", self.mean, f"it is outside {self.min} to {self.max}", "widen min and max, or move the mean")
        return self

    def at(self, normal: Uniforms) -> Tokens:
        """Lengths at standard normal deviates; what falls outside the bounds is moved onto them."""
        sigma = np.sqrt(np.log1p(self.cv**2))
        tokens = np.exp(np.log(self.mean) - sigma**2 / 2 + sigma * normal)
        return np.rint(np.clip(tokens, self.min, self.max)).astype(np.int64)


class Lognormal(Document):
    """Both lengths lognormal; `correlation` is that of their logarithms."""

    kind: Literal["lognormal"]
    isl: Spread
    osl: Spread
    correlation: Annotated[float, Field(gt=-1, lt=1)] = 0.0

    def draw(self, uniforms: Uniforms) -> tuple[Tokens, Tokens]:
        first, second = scipy.special.ndtri(_inside(uniforms[:, 0])), scipy.special.ndtri(_inside(uniforms[:, 1]))
        rho = self.correlation
        return self.isl.at(first), self.osl.at(rho * first + np.sqrt(1 - rho**2) * second)


class Empirical(Document):
    """Observed pairs, each `[isl, osl]` or `[isl, osl, weight]`."""

    kind: Literal["empirical"]
    pairs: Annotated[Row[Row[int | float]], Field(min_length=1)]

    @model_validator(mode="after")
    def _pairs_of_tokens(self) -> Self:
        for at, row in enumerate(self.pairs):
            tokens_are_counts = all(isinstance(tokens, int) and 0 < tokens <= MAX_TOKENS for tokens in row[:2])
            if len(row) not in (2, 3) or not tokens_are_counts or row[-1] <= 0:
                refuse(f"pairs.{at}", list(row), "it is not [isl, osl] or [isl, osl, weight]", "use counts above 0")
        return self

    def draw(self, uniforms: Uniforms) -> tuple[Tokens, Tokens]:
        weights = np.array([row[2] if len(row) == 3 else 1 for row in self.pairs], dtype=np.float64)
        chosen = _choose(weights, uniforms[:, 0])
        table = np.array([row[:2] for row in self.pairs], dtype=np.int64)
        return table[chosen, 0], table[chosen, 1]


class Part(Document):
    """One kind of request in a mixture."""

    weight: PositiveFloat
    lengths: Annotated[Constant | Uniform | Lognormal | Empirical, Field(discriminator="kind")]


class Mixture(Document):
    """Each request is of one of the parts, chosen by weight."""

    kind: Literal["mixture"]
    parts: Annotated[Row[Part], Field(min_length=1)]

    def draw(self, uniforms: Uniforms) -> tuple[Tokens, Tokens]:
        weights = np.array([part.weight for part in self.parts])
        chosen = _choose(weights, uniforms[:, 2])
        drawn = np.array([part.lengths.draw(uniforms) for part in self.parts])  # part, isl or osl, request
        requests = np.arange(len(uniforms))
        return drawn[chosen, 0, requests], drawn[chosen, 1, requests]


Lengths = Annotated[Constant | Uniform | Lognormal | Empirical | Mixture, Field(discriminator="kind")]


class Prefix(Document):
    """Prompts that begin alike: `groups` shared beginnings of `tokens` each.

    A share `share` of requests has one; group k is chosen with weight 1/k^zipf (0: all alike). A prompt always
    keeps at least one token of its own.
    """

    groups: Annotated[int, Field(gt=0, le=1_000_000)]
    tokens: Count
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    zipf: NonNegativeFloat = 0.0

    def draw(self, uniforms: Uniforms, isl: Tokens) -> tuple[Tokens, Tokens]:
        """The group of each request (-1: none), and how many of its prompt tokens belong to the prefix."""
        weights = np.arange(1, self.groups + 1, dtype=np.float64) ** -self.zipf
        group = np.where(uniforms[:, 0] < self.share, _choose(weights, uniforms[:, 1]), -1)
        return group, np.where(group >= 0, np.minimum(self.tokens, isl - 1), 0)


def _between(bounds: tuple[int, ...], uniforms: Uniforms) -> Tokens:
    low, high = bounds
    return low + np.floor(uniforms * (high - low + 1)).astype(np.int64)


def _inside(uniforms: Uniforms) -> Uniforms:
    """Away from 0, where the normal quantile is minus infinity."""
    return np.clip(uniforms, 1e-12, 1 - 1e-12)


def _choose(weights: NDArray[np.float64], uniforms: Uniforms) -> Tokens:
    edges = np.cumsum(weights) / weights.sum()
    return np.minimum(np.searchsorted(edges, uniforms, side="right"), len(weights) - 1).astype(np.int64)
