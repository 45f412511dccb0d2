"""Whether a run of several tells of the server's speed: not if nobody served it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loadtest.types import Outcome, Record

# What a server that has too much to do does as well.
OVERLOAD = frozenset({Outcome.SHED, Outcome.TIMED_OUT, Outcome.UNFINISHED, Outcome.UNSENT})
# If all of the requests due in this last share found no connection, nobody is there any more.
LAST_SHARE = 0.1


def not_served(records: Sequence[Record]) -> str:
    """Why these records, in the order of their due times, say nothing of a speed; empty if they do."""
    if not records:
        return ""
    last = records[-max(1, round(LAST_SHARE * len(records))) :]
    if all(one.outcome is Outcome.NO_CONNECTION for one in last):
        return f"the server was gone at the end: {last[-1].detail}"
    if any(one.ok for one in records) or all(one.outcome in OVERLOAD for one in records):
        return ""
    ((kind, _),) = Counter(one.outcome for one in records).most_common(1)
    detail = next(one.detail for one in records if one.outcome is kind)
    return f"not one of {len(records)} requests completed: {kind.value}: {detail}"
