"""The highest rate of a pattern that the allowed GPUs and dollars bear: found in closed form, then simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planner.search.closed import Prepared, search
from planner.search.fleets import Fleet
from planner.search.traffic import Traffic

# Rates far beyond any deployment, and far below any use, as factors on the workload's own.
MOST_DOUBLINGS = 30
HALVINGS = 8  # of the last doubling: exact to 0.4%
# The simulation may find the closed forms too kind; then less and less of their rate is tried.
CONFIRMED_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def rates_to_confirm(prepared: Prepared, traffic: Traffic, allowed: Callable[[Fleet], bool]) -> Iterator[Traffic]:
    """The traffic at the highest rate that some allowed fleet bears in closed form, then at less; none if none does."""

    def bears(factor: float) -> bool:
        return any(allowed(fleet) for fleet in search(prepared, traffic.scaled(factor)).fleets)

    factor = _highest(bears)
    if factor is not None:
        yield from (traffic.scaled(factor * share) for share in CONFIRMED_SHARES)


def _highest(bears: Callable[[float], bool]) -> float | None:
    """The largest factor that is borne, given that whoever bears a rate bears every lower one."""
    low = next((factor for factor in (2.0**-power for power in range(MOST_DOUBLINGS)) if bears(factor)), None)
    if low is None:
        return None
    for _ in range(MOST_DOUBLINGS):
        if not bears(2 * low):
            break
        low *= 2
    high = 2 * low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low
