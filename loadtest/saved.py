"""A run that was saved, read back whole: its document, its records, and what was seen of the server."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.document import Document, decode
from loadtest.results import SERVER_SUFFIX, read_records
from loadtest.types import LoadTestError, Record
from loadtest.watch.types import Watched

PREFIX = "load-"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """Instants count from the run's start. Results of other tools come without records."""

    document: Document
    records: tuple[Record, ...] = ()
    watched: Watched | None = None


def read_run(path: Path) -> SavedRun:
    """`path`: a report's file, or a folder, of which the newest report counts. Raises LoadTestError."""
    report_file = _newest(path) if path.is_dir() else path
    try:
        document = decode(report_file.read_bytes(), str(report_file))
    except OSError as error:
        raise LoadTestError(f"{report_file} cannot be read: {error}") from error
    records_file = report_file.with_suffix(".jsonl")
    return SavedRun(
        document=document,
        records=tuple(read_records(records_file)) if records_file.exists() else (),
        watched=_read_watched(report_file.with_suffix(SERVER_SUFFIX)),
    )


def _read_watched(path: Path) -> Watched | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(gzip.decompress(path.read_bytes()), type=Watched)
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from error


def _newest(folder: Path) -> Path:
    found = list(folder.glob(f"{PREFIX}*.json"))
    if not found:
        raise LoadTestError(f"{folder} holds no report (a file {PREFIX}….json)")
    return max(found, key=lambda path: path.stat().st_mtime)
