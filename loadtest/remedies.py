"""What to do about a server that refuses, by the status of its answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtest.types import Record

DENIED = frozenset({401, 403})
NOT_FOUND = 404
KEY = "give --api-key, or set OPENAI_API_KEY"


def for_status(status: int) -> str:
    """The end of a message about a question that was answered like this; empty where there is no advice."""
    if status in DENIED:
        return f"; {KEY}"
    if status == NOT_FOUND:
        return "; is --base-url right, up to but without the /v1?"
    return "; does --base-url have to be that address?" if 300 <= status < 400 else ""


def asks_for_models(records: Iterable[Record]) -> bool:
    """True where it would help to know which models are served."""
    return any(record.status == NOT_FOUND for record in records)


def for_records(records: Iterable[Record], endpoint: str, served: Sequence[str] | None) -> list[str]:
    """Lines about requests that were refused. `served` are the models that the server names, None if it names none."""
    statuses = {record.status for record in records if not record.ok}
    found = [f"requests were answered {status}: {KEY}" for status in sorted(statuses & DENIED)]
    if NOT_FOUND in statuses:
        names = f"served are {', '.join(served)}" if served else "the server names no models"
        found.append(f"requests were answered 404: is --model right ({names}), and does --base-url have {endpoint}?")
    moved = sorted(status for status in statuses if 300 <= status < 400)
    found += [f"requests were answered {status}: is the server at another --base-url?" for status in moved]
    return found
