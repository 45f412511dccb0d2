"""Results as files: one line of JSON per request, the report, and what was seen of the server.

Reading them gives the same records again.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from loadtest.document import finite
from loadtest.moves import Moves, shifted
from loadtest.report import Report, as_json
from loadtest.spec import RunResult
from loadtest.types import Flag, LoadTestError, Outcome, Record

LINES_AT_ONCE = 256
SERVER_SUFFIX = ".server.json.gz"

# Instants are written from the start of the run on; 0 still means "never" for these.
_INSTANTS = ("due_ns", "send_ns", "first_ns", "last_ns", "end_ns")
_NEVER_IF_ZERO = ("send_ns", "first_ns", "last_ns")
_NEVER = -1
_NEWER = ("moves", "connect_ns")


@dataclass(frozen=True, slots=True)
class Saved:
    """What could be written; `error` says why not all of it."""

    records_file: Path
    report_file: Path
    records: int
    error: str = ""


def check_folder(folder: Path) -> None:
    """Better before the load than after it. Raises LoadTestError where nothing can be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        raise LoadTestError(f"nothing can be saved in --save-dir {folder}: {error}") from error


def save(result: RunResult, report: Report, folder: Path, more: Mapping[str, Any] | None = None) -> Saved:
    """Write all that can be written: a full disk loses what did not fit and nothing else, and raises nothing.

    `more` joins the report, under its own keys.
    """
    records_file, report_file = (folder / f"load-{result.run_id}.{suffix}" for suffix in ("jsonl", "json"))
    written, errors = 0, list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # First, since it is small and says what the records are of.
        tree = {**as_json(report, result), **finite(dict(more or {}))}
        write_whole(report_file, msgspec.json.format(msgspec.json.encode(tree)) + b"\n")
    except OSError as failure:
        errors.append(f"{report_file} could not be written: {failure}")
    try:
        with records_file.open("wb", buffering=0) as file:
            for whole in write_records(file, result.records, result.start_ns):
                written = whole
    except OSError as failure:
        errors.append(
            f"{max(written, _lines_in(records_file))} of {len(result.records)} records are in {records_file}: {failure}"
        )
    if result.watched is not None and (result.watched.server or result.watched.gpus):
        server_file = report_file.with_suffix(SERVER_SUFFIX)
        try:
            write_whole(server_file, gzip.compress(msgspec.json.encode(result.watched.since(result.start_ns))))
        except OSError as failure:
            errors.append(f"{server_file} could not be written: {failure}")
    return Saved(records_file, report_file, written, "; ".join(errors))


def _lines_in(path: Path) -> int:
    """Whole lines of a file, where it is one: of those written last some may be there too."""
    if not path.is_file():
        return 0
    with suppress(OSError), path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)
    return 0


def write_records(file: IO[bytes], records: Iterable[Record], start_ns: int) -> Iterator[int]:
    """Write to an unbuffered file; gives how many records are whole in it so far. Raises OSError."""
    written, lines = 0, list[bytes]()
    for record in records:
        lines.append(msgspec.json.encode(_as_row(record, start_ns)) + b"\n")
        if len(lines) == LINES_AT_ONCE:
            _write_all(file, b"".join(lines))
            written += len(lines)
            lines.clear()
            yield written
    _write_all(file, b"".join(lines))
    yield written + len(lines)


def _write_all(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing: half a document would only be in the way. Raises OSError."""
    begun = path.with_name(f".{path.name}.begun")
    try:
        begun.write_bytes(data)
        begun.replace(path)
    except OSError:
        with suppress(OSError):
            begun.unlink(missing_ok=True)
        raise


def read_records(path: Path) -> list[Record]:
    """The records of a saved run, with instants from its start on. A last line that was cut off is left out.

    Raises:
        LoadTestError: if the file cannot be read, or another line is no record.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(_from_row(msgspec.json.decode(line)))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise LoadTestError(f"{path}: line {number} is no record: {error}") from error
    return records


def _as_row(record: Record, start_ns: int) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
    for name in _INSTANTS:
        never = name in _NEVER_IF_ZERO and not row[name]
        row[name] = _NEVER if never else row[name] - start_ns
    row["event_ns"] = (record.event_ns - start_ns).tolist()
    row["moves"] = record.moves and shifted(record.moves, -start_ns)
    return row


def _from_row(row: dict[str, Any]) -> Record:
    # Files of earlier versions lack some keys.
    values = {field.name: row[field.name] for field in fields(Record) if field.name not in _NEWER}
    values["connect_ns"] = row.get("connect_ns", 0)
    for name in _NEVER_IF_ZERO:
        values[name] = max(0, values[name])
    values["event_ns"] = np.array(values["event_ns"], dtype=np.int64)
    values["outcome"] = Outcome(values["outcome"])
    values["flags"] = tuple(Flag(flag) for flag in values["flags"])
    values["moves"] = msgspec.convert(row.get("moves"), Moves | None)
    return Record(**values)
