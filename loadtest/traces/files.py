"""Opens trace files: plain, gzip, or ServeGen's folders and tar archives. Names where they come from."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from loadtest.types import LoadTestError
from planner import TRACE_FORMATS, PlannerError, RequestTrace, guess_trace_format, request_trace, servegen_trace

SERVEGEN = "servegen"
FORMATS = (*TRACE_FORMATS, SERVEGEN)
# What reading a file raises that is missing or damaged: each way to compress or to write it has errors of its own, and
# ServeGen's numbers that are none come as ValueError.
UNREADABLE = (
    *(OSError, EOFError, ValueError, RecursionError),
    *(tarfile.TarError, zlib.error, lzma.LZMAError, csv.Error, msgspec.MsgspecError),
)


@dataclass(frozen=True, slots=True)
class TraceSource:
    """Where a trace that the readers were tried on comes from; `sha256` is of the gzipped file."""

    format: str
    where: str
    licence: str
    sha256: str


SOURCES: Mapping[str, TraceSource] = MappingProxyType(
    {
        "azure_llm_2023_conv.csv.gz": TraceSource(
            "azure",
            "Azure/AzurePublicDataset @ b469a113cedc: data/AzureLLMInferenceTrace_conv.csv",
            "CC-BY-4.0",
            "9d3518f77e4387c32c76b206d8006fe5a2bde0dc41d6038dbd0a1c60c7e86fa2",
        ),
        "azure_llm_2023_code.csv.gz": TraceSource(
            "azure",
            "Azure/AzurePublicDataset @ b469a113cedc: data/AzureLLMInferenceTrace_code.csv",
            "CC-BY-4.0",
            "a693e93b69f7c2ad7039d2ea1e109b5cf83c5a6c699e1d4848030e8fae223389",
        ),
        "mooncake_conversation_trace.jsonl.gz": TraceSource(
            "mooncake",
            "kvcache-ai/Mooncake @ 3b5a59413395: FAST25-release/traces/conversation_trace.jsonl",
            "Apache-2.0",
            "cbae1655f679723e13e66e016606208ac03590d5b470d82cc4306a249288ea8a",
        ),
        "weka_cc_traces_sample90.jsonl.gz": TraceSource(
            "weka",
            "callanjfox/kv-cache-tester @ 94f6046dfd9c: 90 of traces/trace_*.json, one per line",
            "Apache-2.0",
            "620348c04e09eb50a69ff019a71688699344d150af29a3eba65dd2464a759951",
        ),
        "servegen_m-small.tar.gz": TraceSource(
            SERVEGEN,
            "alibaba/ServeGen @ f891d1189eb3: data/language/m-small",
            "Apache-2.0",
            "8a0b559755a2a84d26761e148bcdfed4a4de840e91797079a971a44185499893",
        ),
        "servegen_deepseek-r1.tar.gz": TraceSource(
            SERVEGEN,
            "alibaba/ServeGen @ f891d1189eb3: data/reason/deepseek-r1",
            "Apache-2.0",
            "985a54ebcaf39f0c2c3af90697397521de5341bc54bc82e86dc71427efc1d7f8",
        ),
    }
)


def load_trace(
    path: Path,
    rng: np.random.Generator,
    *,
    format: str = "",
    duration_s: float | None = None,
) -> RequestTrace:
    """Read a trace. `duration_s` bounds what is drawn of ServeGen's clients; other formats are read whole.

    Raises:
        LoadTestError: if the file or its format is of no use, or not one line is.
    """
    if format and format not in FORMATS:
        raise LoadTestError(f"{format!r} is no trace format: {', '.join(FORMATS)}")
    try:
        trace = _read(path, rng, format, duration_s)
    except PlannerError as error:
        raise LoadTestError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from error
    if not trace.requests:
        why = f": line {trace.bad_lines[0].number}: {trace.bad_lines[0].why}" if trace.bad_lines else ""
        raise LoadTestError(f"{path} holds no request{why}")
    return trace


def _read(path: Path, rng: np.random.Generator, format: str, duration_s: float | None) -> RequestTrace:
    if format == SERVEGEN or (not format and (path.is_dir() or ".tar" in path.suffixes)):
        return servegen_trace(_chunks(path), rng, duration_s=duration_s)
    with _text(path) as lines:
        first = lines.readline()
        format = format or guess_trace_format(first)
        if not format:
            raise LoadTestError(f"{path} is in no trace format that we know: {', '.join(FORMATS)}")
        lines.seek(0)
        return request_trace(lines, format, rng)


@contextmanager
def _text(path: Path) -> Iterator[io.TextIOBase]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        assert isinstance(file, io.TextIOBase)
        yield file


def _chunks(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.glob("chunk-*"))}
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            data = archive.extractfile(member)
            if data is not None:
                found[member.name] = data.read()
    return found
