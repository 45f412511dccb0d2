"""AIConfigurator's tables as a source: what is believed of them and what is not; the real package where it is there."""

from __future__ import annotations

import importlib.util

import pytest

from planner import PlannerError, shipped_calibration
from planner.perf.aic import BATCHES, arguments_of, borrowed, installed_answer
from planner.perf.estimate import estimates, question_for
from planner.perf.prepared import prepare
from planner.perf.question import Question
from tests.planner.command import plan, refused

FLAGS = ("estimate", "--model", "Llama-3.1-8B", "--system", "h100_sxm", "--isl", "1000", "--osl", "200", "--batch", "8")
INSTALLED = importlib.util.find_spec("aiconfigurator") is not None


def question() -> Question:
    return question_for("Llama-3.1-8B", "h100_sxm", isl=1000, osl=200, batch=8)


def told(batch: object, *, tpot_ms: float = 9.0) -> tuple[float, float]:
    """A table that grows with its batch, a fifth slower than we think."""
    assert isinstance(batch, int)
    return 100.0 + batch, tpot_ms + 0.03 * batch


def test_an_estimate_follows_the_tables_and_says_so() -> None:
    found = borrowed(question(), lambda asked: told(asked["batch_size"], tpot_ms=10.5), shipped_calibration())
    assert found.points == len(BATCHES) and found.left_out == ()
    (ours,), (theirs,) = (
        estimates(prepare([question()]), calibration) for calibration in (shipped_calibration(), found.calibration)
    )
    assert ours.tpot.mean_ms < theirs.tpot.mean_ms < 12
    assert theirs.rung == "AIConfigurator's tables" and theirs.sigma.tpot > ours.sigma.tpot


def test_artefacts_are_left_out_and_told() -> None:
    def odd(asked: dict[str, object]) -> tuple[float, float]:
        batch = asked["batch_size"]
        if batch == 4:
            return 100.0, 0.4  # faster than memory can be read
        if batch == 64:
            return 100.0, 6.0  # shorter than the step of a smaller batch
        if batch == 256:
            raise KeyError("no such point")
        return told(batch)

    found = borrowed(question(), odd, shipped_calibration())
    assert found.points == len(BATCHES) - 3
    words = "; ".join(found.left_out)
    assert "batch 4: TPOT 0.0" in words and "batch 64: a shorter step" in words and "batch 256: it refuses" in words


def test_tables_that_say_nothing_are_an_error_with_a_way_out() -> None:
    def nothing(asked: dict[str, object]) -> tuple[float, float]:
        raise ValueError("unknown system")

    with pytest.raises(PlannerError) as caught:
        borrowed(question(), nothing, shipped_calibration())
    assert "unknown system" in str(caught.value) and "ferry profile" in caught.value.remedy


def test_layouts_are_asked_for_in_its_terms() -> None:
    asked = arguments_of(
        question_for("DeepSeek-V3", "h200", isl=4000, osl=500, concurrency=64, tp=2, dp=4, ep=8, quant="fp8_block")
    )
    assert (asked["tp_size"], asked["attention_dp_size"], asked["moe_ep_size"], asked["moe_tp_size"]) == (2, 4, 8, 1)
    assert asked["batch_size"] == 16 and asked["model_path"] == "DeepSeek-V3"


@pytest.mark.skipif(INSTALLED, reason="it is installed here")
def test_without_the_package_the_command_says_how_to_get_it() -> None:
    refused(plan(*FLAGS, "--source", "aic"), "--source", "pip install 'ferry-serve[aic]'")


@pytest.mark.skipif(not INSTALLED, reason="aiconfigurator is not installed: pip install 'ferry-serve[aic]'")
def test_the_real_tables_answer() -> None:
    found = borrowed(question(), installed_answer(), shipped_calibration())
    assert found.points >= 3
