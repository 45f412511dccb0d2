"""Where the asks of a load come from: laws of length, data sets, traces. Reads their files; all else is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.arrivals import RateProfile, due_times_s, rate_file, think_times_s
from loadtest.asks import Ask
from loadtest.dataset import Dataset, Dialogue, read_dataset
from loadtest.load_plan import LoadPlan
from loadtest.options import profile_of, spread_of
from loadtest.texts import Segment, key_of
from loadtest.tokenizers import Tokenizer
from loadtest.traces.files import load_trace
from loadtest.traces.replay import limited, spread_out, thinned
from loadtest.types import LoadTestError
from loadtest.unused_flags import check_rate, check_trace
from loadtest.workloads import block_segments
from planner import RequestTrace, workload_from

NOTES_SHOWN = 3


def synthetic(plan: LoadPlan, rng: np.random.Generator) -> list[Ask]:
    """Conversations of `turns` turns, with lengths by the planner's laws. The last may be shorter."""
    turns, most = max(1, plan.turns), plan.most_requests
    begins_s = _begins_s(plan, rng, math.ceil(most / turns) if most is not None else None)
    whole = len(begins_s) * turns
    count = whole if most is None else min(whole, most)
    # Laws of length alone: the arrivals are only there because a stream needs some.
    stream = {"lengths": _lengths(plan), "arrivals": {"kind": "constant", "rate_rps": 1.0}}
    sample = workload_from({"streams": {"requests": stream}}).sample(plan.seed, count)
    pauses_s = think_times_s(plan.think_s, plan.think_cv, len(sample), rng).tolist()
    asks = []
    for number, (isl, osl, think_s) in enumerate(zip(sample.isl.tolist(), sample.osl.tolist(), pauses_s, strict=True)):
        session, turn = divmod(number, turns)
        asks.append(
            Ask(
                session=session,
                turn=turn,
                due_s=None if turn else begins_s[session],
                input_tokens=isl,
                output_tokens=osl,
                think_s=think_s if turn else 0.0,
                slo_class=plan.slo_class,
                prefix=() if turn else _prefix(plan, session),
                continues=turn > 0,
            )
        )
    return asks


def _lengths(plan: LoadPlan) -> dict[str, Any]:
    """The law in the words of the workload document."""
    isl, osl = plan.input_words, plan.usual_output_tokens
    if plan.input_cv or plan.output_cv:
        if plan.range_ratio:
            raise LoadTestError("--random-range-ratio and --isl-cv or --osl-cv are two laws: give one")
        spreads = {"isl": (isl, plan.input_cv), "osl": (osl, plan.output_cv)}
        return {"kind": "lognormal", **{key: {"mean": float(mean), "cv": cv} for key, (mean, cv) in spreads.items()}}
    if plan.range_ratio:
        if not 0 < plan.range_ratio < 1:
            raise LoadTestError(f"--random-range-ratio is {plan.range_ratio:g}: it must be at least 0 and below 1")
        return {"kind": "uniform", "isl": _around(isl, plan.range_ratio), "osl": _around(osl, plan.range_ratio)}
    return {"kind": "constant", "isl": isl, "osl": osl}


def _around(mean: int, ratio: float) -> list[int]:
    return [max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio))]


def _prefix(plan: LoadPlan, session: int) -> tuple[Segment, ...]:
    """Conversations take the shared beginnings in turn."""
    if not plan.prefix_tokens:
        return ()
    return (Segment(key_of(plan.seed, "prefix", session % max(1, plan.prefix_groups)), plan.prefix_tokens),)


def recorded(plan: LoadPlan, path: Path, rng: np.random.Generator, tokenizer: Tokenizer) -> tuple[list[Ask], list[str]]:
    """Conversations of a data set in a random order, over and over if they are too few."""
    dataset = read_dataset(path)
    endless, most = _shuffled(dataset, plan), plan.most_requests
    chosen = _filling(endless, most) if most is not None else None
    begins_s = _begins_s(plan, rng, len(chosen) if chosen is not None else None)
    asks = []
    # Not strict: fewer may begin within the duration than were chosen.
    for session, (begin_s, dialogue) in enumerate(zip(begins_s, chosen or endless, strict=False)):
        turns = list(zip(dialogue.questions, dialogue.answers, strict=True))
        pauses_s = think_times_s(plan.think_s, plan.think_cv, len(turns), rng).tolist()
        for turn, (question, answer) in enumerate(turns):
            known = tokenizer.count_text(answer) if answer and plan.output_tokens is None else 0
            asks.append(
                Ask(
                    session=session,
                    turn=turn,
                    due_s=None if turn else begin_s,
                    input_tokens=0,
                    output_tokens=known or plan.usual_output_tokens,
                    think_s=pauses_s[turn] if turn else 0.0,
                    slo_class=plan.slo_class,
                    text=question,
                    system="" if turn else dialogue.system,
                    continues=turn > 0,
                )
            )
    return asks, _shortened(dataset.left_out, path)


def _shuffled(dataset: Dataset, plan: LoadPlan) -> Iterator[Dialogue]:
    """Conversations without end, each of at most the wanted turns."""
    order = np.random.default_rng([plan.seed, 1])
    while True:
        for number in order.permutation(len(dataset.dialogues)).tolist():
            yield _first_turns(dataset.dialogues[number], plan.turns or None)


def _filling(dialogues: Iterator[Dialogue], requests: int) -> list[Dialogue]:
    """As many as have so many turns together; the last is cut to that end."""
    chosen: list[Dialogue] = []
    while requests > 0:
        chosen.append(_first_turns(next(dialogues), requests))
        requests -= len(chosen[-1].questions)
    return chosen


def _first_turns(dialogue: Dialogue, count: int | None) -> Dialogue:
    return replace(dialogue, questions=dialogue.questions[:count], answers=dialogue.answers[:count])


def _begins_s(plan: LoadPlan, rng: np.random.Generator, count: int | None) -> list[float | None]:
    """When conversations begin, at most `count` of them; None in a closed loop."""
    check_rate(plan)
    if plan.rate_file is None and math.isinf(plan.request_rate_rps):
        if count is None:
            raise LoadTestError("a closed loop of some duration needs --num-prompts: as many as it might send at most")
        return [None] * count
    due_s = due_times_s(
        _profile(plan, rng),
        spread_of(plan.family, plan.cv, plan.burstiness),
        rng,
        count=count,
        duration_s=plan.duration_s,
    )
    return [*due_s.tolist()]


def _profile(plan: LoadPlan, rng: np.random.Generator) -> RateProfile:
    if plan.rate_file is None:
        return profile_of(plan.request_rate_rps, plan.ramp_from_rps, plan.bursts, plan.duration_s, rng)
    try:
        return rate_file(plan.rate_file.read_text(encoding="utf-8").splitlines(), file=str(plan.rate_file))
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{plan.rate_file} cannot be read: {error}") from error


def replayed(plan: LoadPlan, path: Path, rng: np.random.Generator) -> tuple[list[Ask], list[str]]:
    trace = load_trace(path, rng, format=plan.trace_format, duration_s=plan.duration_s)
    recorded_apart = any(one.think_s is not None for one in trace.requests)
    check_trace(plan, trace, recorded_apart=recorded_apart)
    notes = _shortened([f"line {bad.number} of {path} was left out: {bad.why}" for bad in trace.bad_lines], path)
    trace = thinned(trace, plan.trace_keep, rng) if plan.trace_keep != 1 else trace
    if recorded_apart and trace.requests:
        trace = _spread(plan, trace, rng)
    trace = limited(trace, plan.requests, plan.duration_s)
    if not trace.requests:
        raise LoadTestError(f"nothing of {path} is left to send")
    return _trace_asks(plan, trace), notes


def _shortened(notes: list[str] | tuple[str, ...], path: Path) -> list[str]:
    more = [f"{len(notes)} entries of {path} were left out in all"] if len(notes) > NOTES_SHOWN else []
    return [*notes[:NOTES_SHOWN], *more]


def _spread(plan: LoadPlan, trace: RequestTrace, rng: np.random.Generator) -> RequestTrace:
    """Sessions that were recorded apart begin at --request-rate, or by --rate-file."""
    check_rate(plan)
    sessions = len({one.session.partition("/")[0] for one in trace.requests})
    spread = spread_of(plan.family, plan.cv, plan.burstiness)
    begins_s = due_times_s(_profile(plan, rng), spread, rng, count=sessions, duration_s=plan.duration_s)
    beyond = np.full(sessions - len(begins_s), math.inf)  # the duration: they will not be sent
    return spread_out(trace, np.concatenate([begins_s, beyond]))


def _trace_asks(plan: LoadPlan, trace: RequestTrace) -> list[Ask]:
    """A trace's prompts hold what was said before: lengths and block ids are of the whole."""
    numbers: dict[str, int] = {}
    asks = []
    for number, one in enumerate(trace.requests):
        isl = one.input_tokens if one.input_tokens is not None else plan.input_words
        osl = one.output_tokens if one.output_tokens is not None else plan.usual_output_tokens
        asks.append(
            Ask(
                session=numbers.setdefault(one.session or f"#{number}", len(numbers)),
                turn=one.turn,
                due_s=None if one.think_s is not None else one.at_s,
                input_tokens=max(1, isl),
                output_tokens=max(1, osl),
                think_s=one.think_s or 0.0,
                slo_class=plan.slo_class,
                prefix=block_segments(one.block_ids, one.block_tokens, plan.seed),
            )
        )
    return asks
