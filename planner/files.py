"""The planner's only file access: model folders in Hugging Face layout, our YAML documents, plans, built-in data."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Hashable
from pathlib import Path

import yaml

from planner.config import shape_from_config
from planner.devices import Device, Devices, devices_from
from planner.documents import validated
from planner.models import ModelShape
from planner.plan import Plan, plan_from
from planner.prices import Prices, prices_from
from planner.profile import LOAD_REPORT, Profile, ProfilePoint, point_of_load_report, profile_from
from planner.slo import Slo, slo_from
from planner.spot import SpotMarkets, spot_markets_from
from planner.traces import Recording, recording_from
from planner.types import PlannerError
from planner.workload import Trace, Workload, WorkloadFile, workload_from

INDEX_FILE = "model.safetensors.index.json"

# The format's own bound on the header (safetensors README); anything above is another kind of file.
MAX_HEADER_BYTES = 100_000_000

# Ours are written by hand; more is another kind of file.
MAX_DOCUMENT_BYTES = 4_000_000
MAX_DOCUMENT_DEPTH = 32

DATA = Path(__file__).parent / "data"


def read_shape(folder: Path) -> ModelShape:
    """The ModelShape in `folder`/config.json. Raises PlannerError."""
    path = folder / "config.json"
    return shape_from_config(read_json_object(path), file=str(path))


def read_json_object(path: Path) -> dict[str, object]:
    """Raises PlannerError if the file cannot be read or is not a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_file(path, f"cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise _bad_file(path, "is not a JSON object")
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the model, sorted; empty if there are none.

    An index names them. Without one, Mistral's `consolidated` copy of the same weights is left out.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _bad_file(index, "has no weight_map")
        return tuple(sorted({folder / str(name) for name in weight_map.values()}))
    found = sorted(folder.glob("*.safetensors"))
    own = [path for path in found if not path.name.startswith("consolidated")]
    return tuple(own or found)


def folder_weight_bytes(folder: Path) -> int:
    """Exact bytes of all tensors in the folder. Raises PlannerError for missing, cut off or foreign files."""
    return sum(tensor_bytes(path) for path in weight_files(folder))


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in one safetensors file; reads its header only.

    Layout: u64 little-endian header length, JSON header with `data_offsets`, then the tensors without gaps.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes)) if header_bytes <= MAX_HEADER_BYTES else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        data_bytes = int(max(ends))
    except OSError as error:
        raise _bad_file(path, f"cannot be read ({error.strerror})") from error
    except (struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _bad_file(path, "is not a safetensors file (a git-lfs pointer?)") from error
    if 8 + header_bytes + data_bytes != file_bytes:
        raise _bad_file(path, f"is cut off: {file_bytes:,} of {8 + header_bytes + data_bytes:,} bytes")
    return data_bytes


def read_devices(own: Path | None = None) -> Devices:
    """The built-in catalogue, with the devices of the file `own` in front. Raises PlannerError."""
    path = DATA / "devices.yaml"
    devices = devices_from(read_yaml_object(path), file=path.name)
    return devices.with_own(devices_from(read_yaml_object(own), file=str(own))) if own else devices


def device(name: str) -> Device:
    """A device of the built-in catalogue, by name, alias or `name:fraction`. Raises PlannerError."""
    return read_devices().device(name)


def read_profile(path: Path) -> Profile:
    """The profile at `path`, YAML or JSON. Raises PlannerError."""
    data = read_yaml_object(path)
    if data.get("format") == LOAD_REPORT:
        remedy = "give a profile, and load reports as further points of it (read_load_point)"
        raise PlannerError(str(path), "format", LOAD_REPORT, "a load report does not say what served the load", remedy)
    return profile_from(data, file=str(path))


def read_load_point(path: Path, *, spread: float = 0.0) -> ProfilePoint:
    """The point that a report of `ferry load run` measured. Raises PlannerError; see `point_of_load_report`."""
    return point_of_load_report(read_json_object(path), file=str(path), spread=spread)


def read_slo(path: Path) -> Slo:
    """The SLO document at `path`. Raises PlannerError."""
    return slo_from(read_yaml_object(path), file=str(path))


def read_workload(path: Path) -> Workload:
    """The workload document at `path` with its traces, whose paths count from its folder. Raises PlannerError."""
    data = read_yaml_object(path)
    document = validated(WorkloadFile, data, file=str(path))
    recordings = {
        name: read_trace(path.parent / stream.trace.path, stream.trace)
        for name, stream in document.streams.items()
        if stream.trace is not None
    }
    return workload_from(data, recordings=recordings, file=str(path))


def read_trace(path: Path, trace: Trace) -> Recording:
    """The recorded requests in a trace file, gzipped if its name ends in .gz. Raises PlannerError, also for gaps."""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if trace.sha256 is not None and digest != trace.sha256:
            remedy = "fetch the trace again, or correct sha256"
            raise PlannerError(str(path), "sha256", digest, f"the workload names another file ({trace.sha256})", remedy)
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise PlannerError(str(path), "", None, problem, "correct `path` in the workload") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PlannerError(str(path), "", None, "is cut off or is no text", "fetch the trace again") from error
    return recording_from(text.splitlines(), trace_format=trace.format, file=str(path), max_gap_s=trace.max_gap_s)


def read_prices(own: Path | None = None) -> Prices:
    """The built-in prices; a device that the file `own` prices is priced by it alone. Raises PlannerError."""
    path = DATA / "prices.yaml"
    prices = prices_from(read_yaml_object(path), file=path.name)
    return prices.with_own(prices_from(read_yaml_object(own), file=str(own))) if own else prices


def read_spot_markets(own: Path | None = None) -> SpotMarkets:
    """The built-in table of spot availability and notices, or the file `own` in its place. Raises PlannerError."""
    path = own or DATA / "spot.yaml"
    return spot_markets_from(read_yaml_object(path), file=str(own) if own else path.name)


def read_plan(path: Path) -> Plan:
    """The plan document at `path`. Raises PlannerError."""
    return plan_from(read_yaml_object(path), file=str(path))


def write_plan(plan: Plan, path: Path) -> None:
    """Write plan.yaml, which `read_plan` reads back. Raises PlannerError if the file cannot be written."""
    text = yaml.safe_dump(plan.document(), sort_keys=False, allow_unicode=True, width=120)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise PlannerError(str(path), "", None, problem, "choose another path") from error


def read_yaml_object(path: Path) -> dict[str, object]:
    """Raises PlannerError if the file cannot be read or is not one YAML mapping that says each key once."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise _bad_document(path, f"is larger than {MAX_DOCUMENT_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        _refuse_traps(path, text)
        value = yaml.load(text, Loader=_EachKeyOnce)
    except OSError as error:
        raise _bad_document(path, f"cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad_document(path, f"cannot be read as YAML ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise _bad_document(path, "is not a YAML mapping")
    return value


def read_table(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The columns and rows of a CSV file with a header line; cells that a short line lacks are empty.

    Raises PlannerError if the file cannot be read, or a line has more cells than there are columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = csv.DictReader(text.splitlines(), restval="")
        rows = [dict(row) for row in table]
    except OSError as error:
        raise PlannerError(str(path), "", None, f"cannot be read ({error.strerror})", "name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        problem = f"cannot be read as CSV ({_one_line(error)})"
        raise PlannerError(str(path), "", None, problem, "name a CSV file in UTF-8") from error
    columns = tuple(table.fieldnames or ())
    if not columns or len(set(columns)) < len(columns):
        raise PlannerError(str(path), "", None, "has no header line that names each column once", "name the columns")
    for line, row in enumerate(rows, start=2):
        if None in row:  # where DictReader puts what is too much
            remedy = f"correct row {line} (quote cells that hold a comma)"
            raise PlannerError(str(path), f"row {line}", None, f"has more than {len(columns)} cells", remedy)
    return columns, rows


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none. Raises PlannerError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
        raise PlannerError(str(path), "", None, problem, "name a folder of yours") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8. Raises PlannerError if that cannot be done."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Raises PlannerError if the file cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise PlannerError(str(path), "", None, problem, "name a file in a folder that exists and is yours") from error


def _refuse_traps(path: Path, text: str) -> None:
    """Aliases make a short file expand without end, and deep nesting costs the parser quadratic time."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _bad_document(path, "has an alias (*name)")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DOCUMENT_DEPTH:
            raise _bad_document(path, f"is nested deeper than {MAX_DOCUMENT_DEPTH} levels")


class _EachKeyOnce(yaml.CSafeLoader):
    """YAML lets a later key silently replace an earlier one. Here that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value} stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or error).splitlines()[0]


def _bad_document(path: Path, problem: str) -> PlannerError:
    return PlannerError(str(path), "", None, problem, f"correct {path.name}; examples stand in configs/")


def _bad_file(path: Path, problem: str) -> PlannerError:
    return PlannerError(str(path), "", None, problem, "fetch the file again from the model's source")
