"""Where tests find data that this repository may not hold: published measurements, traces, spot histories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("FERRY_DATA") or Path(__file__).parents[2] / "shared" / "data")


def data_file(name: str) -> Path:
    """A file below FERRY_DATA (default: ../shared/data); skips the test where it is absent."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {FOLDER.name}; FERRY_DATA names another folder")
    return path
