"""Hypothesis without deadlines: how long an example takes is the machine's affair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from loadtest.truth import TruthConfig, TruthServer

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def truth_process() -> Iterator[TruthServer]:
    with TruthServer() as server:
        yield server


@pytest.fixture
def truth(truth_process: TruthServer) -> TruthServer:
    """A truth server that is quick and makes no mistake, until a test changes it."""
    truth_process.change(QUICK)
    truth_process.take_log()
    return truth_process


QUICK = TruthConfig(ttft_ms=20, gap_ms=5, tokens=8)
