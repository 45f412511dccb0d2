"""Does a rate meet the SLO? A sequential test on the share of requests that do. Pure.

Wald's test weighs two hypotheses, a share some way above the wanted one and a share as far below it, and stops as soon
as the odds are clear: a server that is swamped is found out after a few dozen requests. It is made for independent
requests. Those of one run are not: behind a slow request the next ones wait too. So the evidence is divided by the
`dispersion`: how much more the shares of batches vary than those of independent requests would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from loadtest.metrics import meets
from loadtest.types import Record, Slo

BATCHES_PER_RUN = 8
ERROR = 0.05
# The two hypotheses are this part of the wanted share's distance from 1 away from it.
INDIFFERENCE = 0.5
SPARE = 1.5


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were due one after the other, and how many of them met the SLO."""

    due: int
    met: int


class Side(StrEnum):
    MET = "met"
    MISSED = "missed"
    OPEN = "open"


def batches_of(records: Sequence[Record], slo: Slo, count: int = BATCHES_PER_RUN) -> tuple[Batch, ...]:
    """The records in `count` parts of about equal size, in order of their due times; fewer parts if there are fewer."""
    kept = [meets(record, slo) for record in sorted(records, key=lambda record: (record.due_ns, record.number))]
    parts = min(count, len(kept))
    ends = [len(kept) * part // parts for part in range(parts + 1)] if parts else [0]
    return tuple(Batch(end - begin, sum(kept[begin:end])) for begin, end in pairwise(ends))


def dispersion(runs: Iterable[Sequence[Batch]]) -> float:
    """The variance of batches around their run's share, over that of independent requests; 1 at least.

    1 too where nothing can be told: runs of one batch, and runs in which all requests were alike.
    """
    squares, degrees = 0.0, 0
    for batches in runs:
        square, degree = squares_within(batches)
        squares, degrees = squares + square, degrees + degree
    return max(1.0, squares / degrees) if degrees else 1.0


def merged(batches: Sequence[Batch], together: int) -> tuple[Batch, ...]:
    """Neighbours joined, so many at a time."""
    groups = (batches[first : first + together] for first in range(0, len(batches), together))
    return tuple(Batch(*total(group)) for group in groups)


def squares_within(batches: Sequence[Batch]) -> tuple[float, int]:
    """Pearson's sum of squares of one run's batches around the run's share, and its degrees of freedom."""
    due, met = total(batches)
    if len(batches) < 2 or met in (0, due):
        return 0.0, 0
    share = met / due
    variance = share * (1 - share)
    squares = sum((batch.met - batch.due * share) ** 2 / (batch.due * variance) for batch in batches)
    return squares, len(batches) - 1


def total(batches: Iterable[Batch]) -> tuple[int, int]:
    """Due and met."""
    due = met = 0
    for batch in batches:
        due, met = due + batch.due, met + batch.met
    return due, met


def requests_to_tell(wanted: float, error: float = ERROR) -> int:
    """So many requests, all of which meet the SLO, make the test sure, with some to spare for those that do not."""
    apart = INDIFFERENCE * min(wanted, 1 - wanted)
    return math.ceil(SPARE * math.log((1 - error) / error) / math.log((wanted + apart) / (wanted - apart)))


def side(due: int, met: int, wanted: float, dispersion: float = 1.0, error: float = ERROR) -> Side:
    """What the test says so far: the risk of each wrong answer is `error`, for shares beyond the two hypotheses."""
    apart = INDIFFERENCE * min(wanted, 1 - wanted)
    high, low = wanted + apart, wanted - apart
    evidence = met * math.log(high / low) + (due - met) * math.log((1 - high) / (1 - low))
    bound = math.log((1 - error) / error)
    if evidence / dispersion >= bound:
        return Side.MET
    return Side.MISSED if evidence / dispersion <= -bound else Side.OPEN
