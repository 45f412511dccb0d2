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
Seed = Annotated[int, typer.Option(help="The same seed makes the same load.", rich_help_panel=LOAD)]

Isl = Annotated[int, typer.Option("--isl", "--random-input-len", help="Words in each prompt.", rich_help_panel=LENGTHS)]
Osl = Annotated[
    int, typer.Option("--osl", "--random-output-len", help="Output tokens at most.", rich_help_panel=LENGTHS)
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Always to --osl (vLLM).", rich_help_panel=LENGTHS)]
NoStream = Annotated[bool, typer.Option("--no-stream", help="Whole answers; only E2E then.", rich_help_panel=LENGTHS)]

Goodput = Annotated[
    list[str] | None,
    typer.Option(help="Limits in ms: ttft:500 tpot:50 e2e:… max_gap:…; repeat it or quote.", rich_help_panel=GOAL),
]
Attainment = Annotated[
    float, typer.Option("--slo-attainment-fraction", help="Share that must meet them.", rich_help_panel=GOAL)
]

Timeout = Annotated[float, typer.Option(help="Of one request.", rich_help_panel=LIMITS)]
IdleTimeout = Annotated[float | None, typer.Option(help="Between two reads of a stream.", rich_help_panel=LIMITS)]
Drain = Annotated[float | None, typer.Option(help="Wait this long at the end.", rich_help_panel=LIMITS)]
Workers = Annotated[int, typer.Option(help="Client processes, one core each.", rich_help_panel=LIMITS)]

SaveDir = Annotated[
    Path, typer.Option("--save-dir", "--result-dir", help="Where records and report go.", rich_help_panel=OUTPUT)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)]
KeepText = Annotated[bool, typer.Option("--keep-text", help="Save the answers' text too.", rich_help_panel=OUTPUT)]
