"""What is to be asked, before it has words: who, when, how long. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from loadtest.texts import Segment, key_of
from loadtest.types import LoadTestError

Mix = tuple[tuple[str, float], ...]
"""Names with their weights."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Times as in Job; lengths in tokens.

    `input_tokens` is the length of the whole prompt, or of the new message alone where the turn `continues` its
    conversation. The prompt begins with the segments of `prefix`; where `text` is given, it is that text instead.
    """

    session: int
    turn: int
    due_s: float | None
    input_tokens: int
    output_tokens: int
    think_s: float = 0.0
    slo_class: str = ""
    prefix: tuple[Segment, ...] = ()
    text: str = ""
    system: str = ""
    continues: bool = False
    model: str = ""
    """Empty: that of the form."""
    tenant: str = ""


def parse_mix(flag: str, items: Iterable[str]) -> Mix:
    """From `NAME=WEIGHT`, or NAME for a weight of 1. Raises LoadTestError."""
    mix: list[tuple[str, float]] = []
    for item in items:
        name, equals, number = item.rpartition("=")
        if not equals:
            name, number = item, "1"
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not name or not 0 < weight < float("inf"):
            raise LoadTestError(f"{flag} {item}: it should be NAME=WEIGHT with a weight above 0")
        mix.append((name, weight))
    return tuple(mix)


def mixed(asks: Iterable[Ask], models: Mix, tenants: Mix, seed: int) -> list[Ask]:
    """Give each session a model and a tenant by weight. A conversation stays with both."""
    return [
        replace(
            ask,
            model=_chosen(models, seed, "model", ask.session) or ask.model,
            tenant=_chosen(tenants, seed, "tenant", ask.session) or ask.tenant,
        )
        for ask in asks
    ]


def _chosen(mix: Sequence[tuple[str, float]], seed: int, what: str, session: int) -> str:
    if not mix:
        return ""
    left = key_of(seed, what, session) / 2**64 * sum(weight for _, weight in mix)
    for name, weight in mix:
        left -= weight
        if left < 0:
            return name
    return mix[-1][0]
