"""Compares each answer of a drill with the same request's answer when nothing was disturbed. Pure.

Greedy answers to the same prompts may differ without any fault: another batch gives other roundings. So the reference
is taken twice, and what differs between these two is what the drill's differences have to be held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from loadtest.types import Record

# A repeat shorter than this may be chance: "the" follows "the" somewhere in any text.
MIN_SEAM_CHARS = 8
MAX_SEAM_CHARS = 2_000


class TextVerdict(StrEnum):
    EXACT = "exact"
    CUT = "cut"  # the beginning is right, and then it ends
    DUPLICATE = "duplicate"  # at one place a piece comes twice, otherwise it is right
    GAP = "gap"  # at one place a piece is missing, otherwise it is right
    DIVERGED = "diverged"  # from some place on it is another text
    LONGER = "longer"  # all of it is right, and then it goes on
    UNKNOWN = "unknown"  # there is nothing to compare with


@dataclass(frozen=True, slots=True)
class TextResult:
    """`at_char`: how long the common beginning is."""

    verdict: TextVerdict
    at_char: int


@dataclass(frozen=True, slots=True)
class TextCheck:
    """Counts by verdict: of the drill against the reference, and of a second undisturbed run against it.

    `moved`: of the drill's requests that moved. `excess`: how far the drill's share of inexact answers is above that of
    the undisturbed repetition; None without one.
    """

    drill: Mapping[str, int]
    moved: Mapping[str, int]
    control: Mapping[str, int] | None
    excess: float | None
    results: Mapping[str, TextResult]
    """Of the answers that are not exact, by request number."""


def compare_texts(reference: str | None, found: str | None) -> TextResult:
    if reference is None or found is None:
        return TextResult(TextVerdict.UNKNOWN, 0)
    if reference == found:
        return TextResult(TextVerdict.EXACT, len(found))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reference, found, strict=False)))
    if same == len(found):
        return TextResult(TextVerdict.CUT, same)
    if same == len(reference):
        return TextResult(TextVerdict.LONGER, same)
    seam_chars = len(found) - len(reference)
    added = found[same : same + max(0, seam_chars)]
    if (
        MIN_SEAM_CHARS <= seam_chars <= MAX_SEAM_CHARS
        and found[same:].endswith(reference[same:])
        and reference[:same].endswith(added)  # what was put in is what stood just before it
    ):
        return TextResult(TextVerdict.DUPLICATE, same)
    if MIN_SEAM_CHARS <= -seam_chars <= MAX_SEAM_CHARS and reference[same:].endswith(found[same:]):
        return TextResult(TextVerdict.GAP, same)
    return TextResult(TextVerdict.DIVERGED, same)


def check_texts(
    drill: Sequence[Record], reference: Sequence[Record], control: Sequence[Record] | None = None
) -> TextCheck:
    """Requests are matched by number. Only answers that the reference run completed can be compared."""
    right = {record.number: record.text for record in reference if record.ok}
    results = {record.number: compare_texts(right.get(record.number), record.text) for record in drill}
    moved = {record.number for record in drill if record.moves is not None and record.moves.others}
    again = (
        [compare_texts(right.get(record.number), record.text) for record in control] if control is not None else None
    )
    return TextCheck(
        drill=_counted(results.values()),
        moved=_counted(result for number, result in results.items() if number in moved),
        control=_counted(again) if again is not None else None,
        excess=_inexact(list(results.values())) - _inexact(again) if again is not None else None,
        results={str(n): result for n, result in sorted(results.items()) if result.verdict is not TextVerdict.EXACT},
    )


def _counted(results: Iterable[TextResult]) -> dict[str, int]:
    return dict(sorted(Counter(result.verdict.value for result in results).items()))


def _inexact(results: Sequence[TextResult]) -> float:
    known = [result for result in results if result.verdict is not TextVerdict.UNKNOWN]
    return sum(result.verdict is not TextVerdict.EXACT for result in known) / len(known) if known else 0.0
