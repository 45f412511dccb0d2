"""The flags of `ferry load`. Names are those of `vllm bench serve` and aiperf where these have one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadtest.arrivals import Family

TARGET, LOAD, LENGTHS, GOAL, LIMITS, OUTPUT = "Target", "Load", "Requests", "SLO", "Limits", "Output"

BaseUrl = Annotated[str, typer.Option(help="With or without /v1.", rich_help_panel=TARGET)]
Model = Annotated[
    str, typer.Option(help="Name in the requests.", show_default="the first served", rich_help_panel=TARGET)
]
Endpoint = Annotated[str, typer.Option(help="Chat or text completions.", rich_help_panel=TARGET)]
ApiKey = Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.", rich_help_panel=TARGET)]
Header = Annotated[list[str] | None, typer.Option("--header", help="`Name: value`; repeat it.", rich_help_panel=TARGET)]
CaFile = Annotated[Path | None, typer.Option(help="Certificates to trust.", rich_help_panel=TARGET)]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept any certificate.", rich_help_panel=TARGET)]

RequestRate = Annotated[
    float, typer.Option(help="Requests per second, on average; inf: as --max-concurrency allows.", rich_help_panel=LOAD)
]
Burstiness = Annotated[
    float, typer.Option(help="Gamma shape of the gaps: 1 Poisson, below 1 bursty, inf even.", rich_help_panel=LOAD)
]
Arrivals = Annotated[
    Family | None,
    typer.Option(help="Law of the gaps, with --cv.", show_default="by --burstiness", rich_help_panel=LOAD),
]
Cv = Annotated[float, typer.Option(help="Coefficient of variation for gamma and weibull.", rich_help_panel=LOAD)]
RampFrom = Annotated[
    float | None,
    typer.Option(
        "--ramp-up-start-rps", help="Ramp from here to --request-rate over the duration.", rich_help_panel=LOAD
    ),
]
OnOff = Annotated[
    str, typer.Option(help="`ON_S:OFF_S`: bursts at --request-rate of these mean lengths.", rich_help_panel=LOAD)
]
RateFile = Annotated[Path | None, typer.Option(help="Lines of `seconds,rate`.", rich_help_panel=LOAD)]
Trace = Annotated[Path | None, typer.Option(help="Replay times and lengths of a trace.", rich_help_panel=LOAD)]
TraceFormat = Annotated[str, typer.Option(help="Its format.", show_default="by its content", rich_help_panel=LOAD)]
TraceKeep = Annotated[float, typer.Option(help="Keep this share of its sessions.", rich_help_panel=LOAD)]
Concurrency = Annotated[
    int | None,
    typer.Option("--max-concurrency", "--concurrency", help="Requests in flight at most.", rich_help_panel=LOAD),
]
NumPrompts = Annotated[
    int | None, typer.Option(help="Requests in all.", show_default="100 without a duration", rich_help_panel=LOAD)
]
Duration = Annotated[
    float | None,
    typer.Option("--benchmark-duration", "--duration-s", help="Send for so many seconds.", rich_help_panel=LOAD),
]
WarmUp = Annotated[float, typer.Option(help="Requests due before this are not counted.", rich_help_panel=LOAD)]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed makes the same load, to the byte: an engine that has seen it finds it in its prefix cache.",
        min=0,
        rich_help_panel=LOAD,
    ),
]

Workload = Annotated[
    Path | None, typer.Option(help="The planner's workload.yaml: lengths, prefixes, times.", rich_help_panel=LOAD)
]

TokenizerName = Annotated[
    str,
    typer.Option(
        help="Counts prompts: a folder, a name in transformers' cache, or `endpoint` for its /tokenize.",
        show_default="words are taken for tokens",
        rich_help_panel=LENGTHS,
    ),
]
Isl = Annotated[
    int,
    typer.Option(
        "--isl", "--random-input-len", help="Tokens of each prompt, the chat template's too.", rich_help_panel=LENGTHS
    ),
]
Osl = Annotated[
    int | None,
    typer.Option(
        "--osl",
        "--random-output-len",
        help="Output tokens at most.",
        show_default="128, or as the data has it",
        rich_help_panel=LENGTHS,
    ),
]
RangeRatio = Annotated[
    float, typer.Option("--random-range-ratio", help="Lengths uniform within this share.", rich_help_panel=LENGTHS)
]
IslCv = Annotated[float, typer.Option("--isl-cv", help="Lognormal with this CV.", rich_help_panel=LENGTHS)]
OslCv = Annotated[float, typer.Option("--osl-cv", help="Lognormal with this CV.", rich_help_panel=LENGTHS)]
PrefixTokens = Annotated[
    int,
    typer.Option("--prefix-prompt-length", help="So many of --isl are a shared beginning.", rich_help_panel=LENGTHS),
]
PrefixGroups = Annotated[
    int, typer.Option("--num-prefix-prompts", help="Different shared beginnings.", min=1, rich_help_panel=LENGTHS)
]
Turns = Annotated[
    int,
    typer.Option(
        help="Of each conversation, answers carried on; 0: all that the data has. Rates are of conversations then.",
        min=0,
        rich_help_panel=LENGTHS,
    ),
]
ThinkS = Annotated[float, typer.Option(help="Mean pause between turns.", min=0, rich_help_panel=LENGTHS)]
ThinkCv = Annotated[float, typer.Option(help="CV of the pauses.", min=0, rich_help_panel=LENGTHS)]
Dataset = Annotated[
    Path | None,
    typer.Option("--dataset-path", help="Conversations: ShareGPT's JSON, or OpenAI messages.", rich_help_panel=LENGTHS),
]
Tools = Annotated[Path | None, typer.Option(help="JSON list of tools for each request.", rich_help_panel=LENGTHS)]
ResponseFormat = Annotated[
    Path | None, typer.Option(help="JSON schema, or a whole response_format.", rich_help_panel=LENGTHS)
]
ExtraBody = Annotated[str, typer.Option(help="JSON object to add to each request.", rich_help_panel=LENGTHS)]
ModelMix = Annotated[
    list[str] | None,
    typer.Option("--model-mix", help="Model or LoRA `NAME=WEIGHT`; repeat it.", rich_help_panel=LENGTHS),
]
Tenant = Annotated[list[str] | None, typer.Option(help="`NAME=WEIGHT`; repeat it.", rich_help_panel=LENGTHS)]
TenantHeader = Annotated[str, typer.Option(help="Header that names the tenant.", rich_help_panel=LENGTHS)]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Always to --osl (vLLM).", rich_help_panel=LENGTHS)]
NoStream = Annotated[bool, typer.Option("--no-stream", help="Whole answers; only E2E then.", rich_help_panel=LENGTHS)]

Goodput = Annotated[
    list[str] | None,
    typer.Option(help="Limits in ms: ttft:500 tpot:50 e2e:… max_gap:…; repeat it or quote.", rich_help_panel=GOAL),
]
SloFile = Annotated[
    Path | None, typer.Option("--slo", help="The planner's slo.yaml, in place of --goodput.", rich_help_panel=GOAL)
]
SloClass = Annotated[str, typer.Option(help="Class of requests, where the load has none.", rich_help_panel=GOAL)]
ClassHeader = Annotated[str, typer.Option(help="Header that names the class.", rich_help_panel=GOAL)]
Attainment = Annotated[
    float, typer.Option("--slo-attainment-fraction", help="Share that must meet them.", rich_help_panel=GOAL)
]

Timeout = Annotated[float, typer.Option(help="Of one request.", rich_help_panel=LIMITS)]
IdleTimeout = Annotated[float | None, typer.Option(help="Between two reads of a stream.", rich_help_panel=LIMITS)]
Drain = Annotated[float | None, typer.Option(help="Wait this long at the end.", rich_help_panel=LIMITS)]
MaxAnswer = Annotated[
    float, typer.Option("--max-answer-mib", help="Of one answer; a longer one is ended.", rich_help_panel=LIMITS)
]
MaxAnswers = Annotated[
    float,
    typer.Option(
        "--max-answers-mib",
        help="Of all answers under way in one worker; beyond it, the longest are ended.",
        rich_help_panel=LIMITS,
    ),
]
Workers = Annotated[int, typer.Option(help="Client processes, one core each.", rich_help_panel=LIMITS)]
WorkersAt = Annotated[
    str,
    typer.Option(
        "--workers",
        help="Client processes, one core each; or `ray://HOST:PORT`, `ray:auto`: tasks of a Ray cluster, one on each "
        "node or `?workers=N`.",
        rich_help_panel=LIMITS,
    ),
]

SaveDir = Annotated[
    Path, typer.Option("--save-dir", "--result-dir", help="Where records and report go.", rich_help_panel=OUTPUT)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)]
KeepText = Annotated[bool, typer.Option("--keep-text", help="Save the answers' text too.", rich_help_panel=OUTPUT)]
