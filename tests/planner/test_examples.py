"""The worked examples in configs/: each question reads, with all that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from planner.questions import question_file, question_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUESTIONS = sorted(CONFIGS.glob("question.*.yaml"))


def test_there_are_six_examples_of_every_kind() -> None:
    names = "-".join(path.name.split(".")[1] for path in QUESTIONS)
    assert len(QUESTIONS) == 6
    assert all(kind in names for kind in ("chat", "rag", "reasoning", "l40s", "h100", "spot", "ascend"))


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.name)
def test_a_question_reads(path: Path) -> None:
    asked = question_of(question_file(yaml.safe_load(path.read_text()), file=path.name), CONFIGS)
    assert asked.devices and set(asked.slo.classes) == set(asked.workload.streams)
    assert path.name in path.read_text()  # the command that asks it
