"""The public traces, read whole. Their files are not in this repository: FERRY_DATA names the folder."""

from __future__ import annotations

import numpy as np
import pytest

from planner import PlannerError, Recording, Trace, read_trace
from tests.research_data import data_file


def read(name: str, trace_format: str, **keys: object) -> Recording:
    trace = Trace.model_validate({"path": name, "format": trace_format, **keys})
    return read_trace(data_file(f"traces/{name}"), trace)


def test_azure_conversations() -> None:
    conversations = read(
        "azure_llm_2023_conv.csv.gz",
        "azure",
        sha256="9d3518f77e4387c32c76b206d8006fe5a2bde0dc41d6038dbd0a1c60c7e86fa2",
    )
    assert len(conversations) == 19_366
    assert conversations.mean_rate_rps == pytest.approx(5.53, abs=0.01)
    assert conversations.isl.mean() == pytest.approx(1155, abs=1)
    assert conversations.osl.mean() == pytest.approx(211, abs=1)


def test_azure_code_is_bursty_and_has_long_silences() -> None:
    code = read("azure_llm_2023_code.csv.gz", "azure")
    gaps = np.diff(code.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(13.2, abs=0.1)
    with pytest.raises(PlannerError, match="max_gap_s = 200"):
        read("azure_llm_2023_code.csv.gz", "azure", max_gap_s=200)


def test_mooncake_conversations() -> None:
    mooncake = read("mooncake_conversation_trace.jsonl.gz", "mooncake")
    assert len(mooncake) == 12_031
    assert mooncake.isl.mean() == pytest.approx(12_035, abs=1)
    assert mooncake.shared_tokens.sum() / mooncake.isl.sum() == pytest.approx(0.366, abs=0.01)


def test_a_trace_of_another_format_is_refused() -> None:
    with pytest.raises(PlannerError, match="is `format` right"):
        read("azure_llm_2023_conv.csv.gz", "burstgpt")
