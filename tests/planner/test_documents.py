"""Files that are no document of ours: each is refused by name, never with a traceback of another library."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from planner import PlannerError, read_devices, read_prices, read_slo, read_spot_markets, read_workload

READERS: list[Callable[[Path], object]] = [read_slo, read_workload, read_devices, read_prices, read_spot_markets]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a YAML mapping"),
        (b"- 1\n- 2\n", "not a YAML mapping"),
        (b"classes: {chat: [", "line"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"a: 1\na: 2\n", "twice"),
        (b"a: {b: 1, b: 2}\n", "twice"),
        (b"a: &x {b: 1}\nc: *x\n", "alias"),
        (b"a: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
        (b"? [1, 2]\n: 3\n", "cannot be read as YAML"),
        (b"{" * 100_000, "nested deeper"),
        (b"unheard_of: 1\n", "unheard_of"),
        (b"1: 2\n", "1 is 2"),
        (b"#" * 5_000_000, "larger than"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)
def test_odd_files_are_refused(tmp_path: Path, read: Callable[[Path], object], content: bytes, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(PlannerError) as error:
        read(path)
    assert error.value.file == str(path)
    assert words in str(error.value)
    assert error.value.remedy
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_missing_files_folders_and_locked_files(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(PlannerError, match="cannot be read"):
            read(path)
    locked = tmp_path / "locked.yaml"
    locked.write_text("a: 1", encoding="utf-8")
    locked.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(PlannerError, match="cannot be read"):
            read(locked)


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text("classes: {chat: {ttft_ms: '" + "x" * 5000 + "'}}", encoding="utf-8")
    with pytest.raises(PlannerError) as error:
        read_slo(path)
    assert len(str(error.value)) < 300


def test_further_problems_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text("classes: {a: {ttft_ms: -1, tpot_ms: -1, rate_rps: -1}}", encoding="utf-8")
    with pytest.raises(PlannerError) as error:
        read_slo(path)
    assert "2 more" in error.value.remedy
