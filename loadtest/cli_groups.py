"""The flags of `ferry load` in groups, so that commands which send a load take the same ones.

A command that is `grouped` has parameters of these types; on the command line each is all of its group's flags.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from loadtest import cli_options as flags
from loadtest.asks import parse_mix
from loadtest.endpoint import first_model
from loadtest.goals import check_seen, read_goals
from loadtest.load_plan import LoadPlan
from loadtest.options import check_above_zero, parse_header, parse_slo, parse_workers
from loadtest.types import Limits, LoadTestError, Slo, Target
from loadtest.unused_flags import check_flags

T = TypeVar("T")

DEFAULT_TENANT_HEADER = "X-Tenant-Id"


@dataclass(frozen=True, kw_only=True)
class TargetFlags:
    """Where the requests go."""

    base_url: flags.BaseUrl = "http://127.0.0.1:8000"
    model: flags.Model = ""
    endpoint: flags.Endpoint = "/v1/chat/completions"
    api_key: flags.ApiKey = ""
    header: flags.Header = None
    ca_file: flags.CaFile = None
    insecure: flags.Insecure = False

    def target(self) -> Target:
        keys = (("Authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
        headers = (*keys, *(parse_header(line) for line in self.header or ()))
        return Target(
            self.base_url, self.endpoint, headers, str(self.ca_file) if self.ca_file else None, not self.insecure
        )


@dataclass(frozen=True, kw_only=True)
class TimesFlags:
    """When they go, and how many."""

    request_rate: flags.RequestRate = math.inf
    burstiness: flags.Burstiness = 1.0
    arrivals: flags.Arrivals = None
    cv: flags.Cv = 1.0
    ramp_up_start_rps: flags.RampFrom = None
    on_off: flags.OnOff = ""
    rate_file: flags.RateFile = None
    workload: flags.Workload = None
    trace: flags.Trace = None
    trace_format: flags.TraceFormat = ""
    trace_keep: flags.TraceKeep = 1.0
    max_concurrency: flags.Concurrency = None
    num_prompts: flags.NumPrompts = None
    benchmark_duration: flags.Duration = None
    warmup_s: flags.WarmUp = 0.0
    seed: flags.Seed = 0


@dataclass(frozen=True, kw_only=True)
class RequestFlags:
    """What they ask."""

    tokenizer: flags.TokenizerName = ""
    isl: flags.Isl = 512
    osl: flags.Osl = None
    random_range_ratio: flags.RangeRatio = 0.0
    isl_cv: flags.IslCv = 0.0
    osl_cv: flags.OslCv = 0.0
    prefix_prompt_length: flags.PrefixTokens = 0
    num_prefix_prompts: flags.PrefixGroups = 1
    turns: flags.Turns = 1
    think_s: flags.ThinkS = 0.0
    think_cv: flags.ThinkCv = 0.0
    dataset_path: flags.Dataset = None
    tools: flags.Tools = None
    response_format: flags.ResponseFormat = None
    extra_body: flags.ExtraBody = ""
    model_mix: flags.ModelMix = None
    tenant: flags.Tenant = None
    tenant_header: flags.TenantHeader = DEFAULT_TENANT_HEADER
    ignore_eos: flags.IgnoreEos = False
    no_stream: flags.NoStream = False

    def extra(self) -> dict[str, Any]:
        """Further keys of each body. Raises LoadTestError for what is no such JSON."""
        extra: dict[str, Any] = {}
        if self.extra_body:
            extra |= _object("--extra-body", self.extra_body)
        if self.tools is not None:
            extra["tools"] = _parsed("--tools", _text(self.tools))
            if not isinstance(extra["tools"], list):
                raise LoadTestError(f"--tools {self.tools} holds no JSON list")
        if self.response_format is not None:
            found = _object("--response-format", _text(self.response_format))
            whole = found.get("type") in ("json_schema", "json_object", "text", "structural_tag")
            schema = {"name": "answer", "schema": found, "strict": True}
            extra["response_format"] = found if whole else {"type": "json_schema", "json_schema": schema}
        return extra


@dataclass(frozen=True, kw_only=True)
class GoalFlags:
    """What is promised of them."""

    goodput: flags.Goodput = None
    slo: flags.SloFile = None
    slo_class: flags.SloClass = ""
    class_header: flags.ClassHeader = ""
    slo_attainment_fraction: flags.Attainment = 0.95

    def slos(self) -> tuple[Slo, dict[str, Slo]]:
        """Of all requests, and of classes by name. Raises LoadTestError."""
        if self.slo is None:
            return parse_slo(self.goodput or (), self.slo_attainment_fraction), {}
        if self.goodput:
            raise LoadTestError("--slo and --goodput are two SLOs: give one")
        return Slo(), read_goals(self.slo)

    def class_of_load(self, workload: Path | None) -> str:
        """Of requests that no workload gives a class. Raises LoadTestError if it is not in the SLO file."""
        if self.slo is None:
            return self.slo_class
        classes = read_goals(self.slo)
        if self.slo_class in classes or (workload is not None and not self.slo_class):
            return self.slo_class
        if self.slo_class or len(classes) > 1:
            raise LoadTestError(f"--slo-class should be one of {', '.join(classes)}")
        return next(iter(classes))


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """What ends them."""

    timeout_s: flags.Timeout = 600.0
    idle_timeout_s: flags.IdleTimeout = None
    drain_s: flags.Drain = None
    max_answer_mib: flags.MaxAnswer = 64.0
    max_answers_mib: flags.MaxAnswers = 4096.0
    workers: flags.WorkersAt = "1"

    @property
    def crew(self) -> tuple[int, str | None]:
        """How many workers, and the Ray cluster that runs them. Raises LoadTestError."""
        return parse_workers(self.workers)

    def limits(self, times: TimesFlags) -> Limits:
        """Raises LoadTestError for what would never end, or never begin."""
        check_above_zero(
            {
                "--timeout-s": self.timeout_s,
                "--idle-timeout-s": self.idle_timeout_s,
                "--drain-s": self.drain_s or None,  # 0: not at all
                "--max-answer-mib": self.max_answer_mib,
                "--max-answers-mib": self.max_answers_mib,
            }
        )
        return Limits(
            times.max_concurrency,
            times.benchmark_duration,
            self.timeout_s,
            self.idle_timeout_s,
            drain_s=self.drain_s,
            answer_bytes=round(self.max_answer_mib * 2**20),
            answers_bytes=round(self.max_answers_mib * 2**20),
        )


def plan_of(target: TargetFlags, times: TimesFlags, requests: RequestFlags, goal: GoalFlags) -> LoadPlan:
    """The load that these flags ask for.

    Raises:
        LoadTestError: for what cannot be had or would do nothing, and where the endpoint must name a model and cannot.
    """
    check_above_zero(
        {
            "--max-concurrency": times.max_concurrency,
            "--benchmark-duration": times.benchmark_duration,
            "--num-prompts": times.num_prompts,
            "--warmup-s": times.warmup_s or None,  # 0: none
            "--isl": requests.isl,
            "--osl": requests.osl,
            "--prefix-prompt-length": requests.prefix_prompt_length or None,
        }
    )
    if requests.no_stream and goal.slo is None:
        check_seen(goal.slos()[0], "--goodput")
    plan = LoadPlan(
        endpoint=target.endpoint,
        model=target.model,
        input_words=requests.isl,
        output_tokens=requests.osl,
        ignore_eos=requests.ignore_eos,
        stream=not requests.no_stream,
        seed=times.seed,
        request_rate_rps=times.request_rate,
        burstiness=times.burstiness,
        family=times.arrivals,
        cv=times.cv,
        ramp_from_rps=times.ramp_up_start_rps,
        bursts=times.on_off,
        rate_file=times.rate_file,
        trace=times.trace,
        trace_format=times.trace_format,
        trace_keep=times.trace_keep,
        requests=times.num_prompts,
        duration_s=times.benchmark_duration,
        tokenizer=requests.tokenizer,
        range_ratio=requests.random_range_ratio,
        input_cv=requests.isl_cv,
        output_cv=requests.osl_cv,
        prefix_tokens=requests.prefix_prompt_length,
        prefix_groups=requests.num_prefix_prompts,
        turns=requests.turns,
        think_s=requests.think_s,
        think_cv=requests.think_cv,
        dataset=requests.dataset_path,
        workload=times.workload,
        slo=goal.slo,
        slo_class=goal.class_of_load(times.workload),
        models=parse_mix("--model-mix", requests.model_mix or ()),
        tenants=parse_mix("--tenant", requests.tenant or ()),
        tenant_header=requests.tenant_header,
        class_header=goal.class_header,
        extra=requests.extra(),
        given=_given(times, requests, goal),
    )
    check_flags(plan)
    return plan if plan.model else replace(plan, model=first_model(target.target()))


def _given(*groups: Any) -> frozenset[str]:
    """The flags that are not as they are by default."""
    return frozenset(
        f"--{flag.name.replace('_', '-')}"
        for group in groups
        for flag in fields(group)
        if getattr(group, flag.name) != flag.default
    )


def grouped(command: Callable[..., T]) -> Callable[..., T]:
    """The command with each parameter that is a group of flags replaced by these flags, for Typer to see."""
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups = {name: hints[name] for name in own if is_dataclass(hints[name])}
    seen: dict[str, inspect.Parameter] = {}
    for name, parameter in own.items():
        if name not in groups:
            seen[name] = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        types = get_type_hints(groups[name], include_extras=True)
        for flag in fields(groups[name]):
            seen[flag.name] = inspect.Parameter(
                flag.name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=types[flag.name]
            )

    @wraps(command)
    def run(**given: Any) -> T:
        made = {
            name: group(**{flag.name: given.pop(flag.name) for flag in fields(group)}) for name, group in groups.items()
        }
        return command(**made, **given)

    run.__signature__ = inspect.Signature(list(seen.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in seen.items()}
    return run


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path} cannot be read: {error}") from error


def _parsed(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadTestError(f"{flag} is no JSON: {error}") from error


def _object(flag: str, text: str) -> dict[str, Any]:
    found = _parsed(flag, text)
    if not isinstance(found, dict):
        raise LoadTestError(f"{flag} is no JSON object")
    return found
