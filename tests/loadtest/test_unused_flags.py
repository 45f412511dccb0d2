"""Flags that a load has no use for are refused, and those that it uses are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from loadtest import unused_flags
from loadtest.arrivals import Family
from loadtest.cli import load_app
from loadtest.cli_groups import GoalFlags, RequestFlags, TargetFlags, TimesFlags, plan_of
from loadtest.load import make_load
from loadtest.types import LoadTestError
from tests.loadtest.test_traces import WEKA, written
from tests.loadtest.test_workloads import WORKLOAD, mooncake

RATE = ["--request-rate", "5"]
FILES = {
    "WORKLOAD": WORKLOAD,
    "SLO": "classes: {chat: {ttft_ms: 500}, batch: {ttft_ms: 900}}\n",
    "DATA": json.dumps({"prompt": "why?"}) + "\n",
    "AGENTS": json.dumps(WEKA) + "\n",
    "TIMES": "arrival_s,isl,osl\n0,5,2\n1,5,2\n",
    "RATES": "0,5\n",
}

REFUSED: list[tuple[list[str], str]] = [
    (["--workload", "WORKLOAD", *flags], f"{flags[0]} does nothing with --workload")
    for flags in (
        ["--isl", "9"], ["--osl", "9"], ["--burstiness", "2"], ["--on-off", "1:1"], ["--rate-file", "RATES"],
        ["--turns", "2"], ["--slo-class", "chat"],
    )
]  # fmt: skip
REFUSED += [
    (["--trace", "TIMES", *flags], f"{flags[0]} does nothing with {where}")
    for flags, where in (
        (["--turns", "4"], "--trace"),
        (["--random-range-ratio", "0.5"], "--trace"),
        (["--prefix-prompt-length", "4"], "--trace"),
        (["--request-rate", "50"], "a trace that has its own times"),
        (["--burstiness", "0.2"], "a trace that has its own times"),
        (["--rate-file", "RATES"], "a trace that has its own times"),
        (["--isl", "9"], "a trace that has the lengths of its prompts"),
        (["--osl", "9"], "a trace that has the lengths of its answers"),
    )
]
REFUSED += [
    (["--trace", "TIMES", "--turns", "4", "--think-s", "3"], "--turns, --think-s do nothing with --trace"),
    (["--trace", "AGENTS", "--burstiness", "0.2"], "--burstiness does nothing where nothing comes at a rate"),
    (["--dataset-path", "DATA", *RATE, "--isl", "9"], "--isl does nothing with --dataset-path"),
    (["--dataset-path", "DATA", *RATE, "--think-s", "9"], "--think-s does nothing in conversations of one turn"),
    ([*RATE, "--trace-keep", "0.5"], "--trace-keep does nothing without --trace"),
    ([*RATE, "--cv", "2"], "--cv does nothing without --arrivals gamma or weibull"),
    ([*RATE, "--cv", "2", "--arrivals", "poisson"], "--cv does nothing without --arrivals gamma or weibull"),
    ([*RATE, "--burstiness", "2", "--arrivals", "gamma"], "--burstiness does nothing with --arrivals"),
    (["--rate-file", "RATES", *RATE], "--request-rate does nothing with --rate-file"),
    ([*RATE, "--num-prefix-prompts", "3"], "--num-prefix-prompts does nothing without --prefix-prompt-length"),
    ([*RATE, "--turns", "0", "--think-s", "3"], "--think-s does nothing in conversations of one turn"),
    ([*RATE, "--turns", "2", "--think-cv", "1"], "--think-cv does nothing without --think-s"),
    ([*RATE, "--tenant-header", "X"], "--tenant-header does nothing without --tenant"),
    ([*RATE, "--class-header", "X"], "--class-header does nothing where requests have no class"),
    (["--slo", "SLO", "--slo-class", "chat", "--slo-attainment-fraction", "0.5"], "-fraction does nothing with --slo"),
    (["--burstiness", "0.5"], "--burstiness does nothing where nothing comes at a rate"),
    (["--ramp-up-start-rps", "1"], "--ramp-up-start-rps does nothing where nothing comes at a rate"),
]


@pytest.mark.parametrize(("flags", "told"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_a_flag_that_would_do_nothing_is_refused_by_its_name(flags: list[str], told: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        written(tmp_path / name, text)
    given = [str(tmp_path / word) if word in FILES else word for word in flags]
    common = ["run", "--model", "m", "--base-url", "http://127.0.0.1:9", "--save-dir", str(tmp_path), *given]
    found = CliRunner(env={"COLUMNS": "200"}).invoke(load_app, common)
    assert found.exit_code == 2 and told in found.output, found.output


def test_every_flag_that_can_be_refused_is_one_of_the_command_line() -> None:
    cases = [unused for _, unused in unused_flags.CASES]
    cases += [one for one in vars(unused_flags).values() if isinstance(one, unused_flags.Unused)]
    command = get_command(load_app).commands["run"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert len(cases) > 10 and {flag for case in cases for flag in case.flags} <= options


def jobs(times: TimesFlags, requests: RequestFlags | None = None, goal: GoalFlags | None = None) -> int:
    return len(make_load(plan_of(TargetFlags(model="m"), times, requests or RequestFlags(), goal or GoalFlags())).jobs)


def test_what_a_load_uses_is_not_refused(tmp_path: Path) -> None:
    file = {name: written(tmp_path / name, text) for name, text in FILES.items()}
    drawn = RequestFlags(
        isl=20, osl=9, isl_cv=0.5, osl_cv=0.5, turns=2, think_s=1, think_cv=1, prefix_prompt_length=5,
        num_prefix_prompts=2, tenant=["a"], tenant_header="X",
    )  # fmt: skip
    gaps = TimesFlags(request_rate=50, arrivals=Family.GAMMA, cv=2, num_prompts=7)
    assert jobs(gaps, drawn, GoalFlags(slo_class="chat", class_header="X", slo_attainment_fraction=0.5)) == 7
    said = RequestFlags(osl=9, turns=0, think_s=1, dataset_path=file["DATA"])
    assert jobs(TimesFlags(rate_file=file["RATES"], burstiness=0.5, num_prompts=7), said) == 7
    assert jobs(TimesFlags(trace=file["AGENTS"], trace_format="weka", request_rate=5, burstiness=0.5)) == 4
    assert jobs(TimesFlags(trace=mooncake(tmp_path / "m.jsonl"), trace_keep=1.0, num_prompts=2)) == 2
    planned = TimesFlags(workload=file["WORKLOAD"], request_rate=5, num_prompts=7, seed=3)
    assert jobs(planned, goal=GoalFlags(slo=file["SLO"], slo_class="chat", class_header="X")) == 7


def test_a_search_gives_its_rate_later_than_its_flags() -> None:
    plan = plan_of(TargetFlags(model="m"), TimesFlags(burstiness=0.5), RequestFlags(), GoalFlags())
    assert len(make_load(replace(plan, request_rate_rps=5.0, requests=9)).jobs) == 9
    with pytest.raises(LoadTestError, match="--burstiness does nothing"):
        make_load(plan)
