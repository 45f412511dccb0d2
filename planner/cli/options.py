"""The flags of `ferry plan` and `ferry simulate`. Names are AIConfigurator's and vLLM's where these have one."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from planner.report.answers import Aim

WHAT, WHERE, ENGINE, LOAD, LENGTHS, OUTPUT = "Model", "Devices", "Engine", "Load", "Requests", "Output"
PROMISE, COST, HOW = "SLO", "Cost", "Search"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "--model-path",
        help="Name of a public model, or a folder with its config.json.",
        rich_help_panel=WHAT,
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(
        "--quant", help="Weight format: fp8, int4_awq, nvfp4, …", show_default="the model's", rich_help_panel=WHAT
    ),
]
KvDtype = Annotated[
    str | None,
    typer.Option("--kv-cache-dtype", help="auto, fp8 or bfloat16.", show_default="by --quant", rich_help_panel=WHAT),
]

System = Annotated[
    str,
    typer.Option("--system", help="Device, such as h100_sxm, l40s, h100_sxm:1g.10gb, l4:1/2.", rich_help_panel=WHERE),
]
OwnDevices = Annotated[
    Path | None, typer.Option("--devices", help="Devices of your own (YAML).", rich_help_panel=WHERE)
]
TotalGpus = Annotated[
    int, typer.Option("--total-gpus", "--max-gpus", min=1, max=1024, help="Devices at most.", rich_help_panel=WHERE)
]

Tp = Annotated[int, typer.Option("--tp", "--tp-size", min=1, help="Tensor parallel degree.", rich_help_panel=ENGINE)]
TpOrNone = Annotated[
    int | None,
    typer.Option(
        "--tp", "--tp-size", min=1, help="Tensor parallel degree.", show_default="fewest GPUs", rich_help_panel=ENGINE
    ),
]
Pp = Annotated[int, typer.Option("--pp", "--pp-size", min=1, help="Pipeline stages.", rich_help_panel=ENGINE)]
Dp = Annotated[
    int, typer.Option("--dp", "--attention-dp-size", min=1, help="Data-parallel ranks.", rich_help_panel=ENGINE)
]
Ep = Annotated[
    int, typer.Option("--ep", "--moe-ep-size", min=1, help="Devices that share out experts.", rich_help_panel=ENGINE)
]
Replicas = Annotated[
    int, typer.Option(min=1, max=10_000, help="Equal engines that share the load.", rich_help_panel=ENGINE)
]
Backend = Annotated[str, typer.Option("--backend", "--engine", help="vllm, sglang or trtllm.", rich_help_panel=ENGINE)]
MaxModelLen = Annotated[
    int | None,
    typer.Option(min=1, help="Prompt and answer together.", show_default="the model's", rich_help_panel=ENGINE),
]
BatchedTokens = Annotated[
    int | None, typer.Option(min=1, help="Token budget of a step.", show_default="vLLM's", rich_help_panel=ENGINE)
]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(min=1, help="Requests in one step.", show_default="as many as fit", rich_help_panel=ENGINE),
]
Utilization = Annotated[
    float, typer.Option(help="Share of a device's memory that the engine may take.", rich_help_panel=ENGINE)
]
BlockSize = Annotated[int, typer.Option(min=1, help="Tokens in a KV block.", rich_help_panel=ENGINE)]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="What was measured.", show_default="the shipped one", rich_help_panel=ENGINE),
]

Isl = Annotated[int, typer.Option("--isl", min=1, help="Prompt tokens, on average.", rich_help_panel=LENGTHS)]
Osl = Annotated[int, typer.Option("--osl", min=1, help="Answer tokens, on average.", rich_help_panel=LENGTHS)]
WorkloadFile = Annotated[
    Path | None,
    typer.Option(
        "--workload", help="Lengths and arrivals (YAML), in place of --isl and --osl.", rich_help_panel=LENGTHS
    ),
]

Concurrency = Annotated[
    float | None,
    typer.Option("--concurrency", "--target-concurrency", help="Clients that never pause.", rich_help_panel=LOAD),
]
RequestRate = Annotated[
    float | None,
    typer.Option("--request-rate", "--target-request-rate", help="Requests per second.", rich_help_panel=LOAD),
]
Batch = Annotated[
    float | None,
    typer.Option("--batch", "--batch-size", help="One batch, all there at the start.", rich_help_panel=LOAD),
]

Rows = Annotated[
    Path | None,
    typer.Option("--rows", help="Estimate every row of a CSV file instead.", rich_help_panel=LOAD),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write it.", show_default="stdout", rich_help_panel=OUTPUT)
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.", rich_help_panel=OUTPUT)]

Question = Annotated[
    Path | None,
    typer.Option("--question", help="All of this in a file (YAML); flags override it.", rich_help_panel=WHAT),
]
ModelOrNone = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--model-path",
        help="Name of a public model, or a folder with its config.json.",
        rich_help_panel=WHAT,
    ),
]
Quants = Annotated[
    list[str] | None,
    typer.Option("--quant", help="Weight formats to try; repeat it.", show_default="by device", rich_help_panel=WHAT),
]
KvDtypes = Annotated[
    list[str] | None,
    typer.Option("--kv-cache-dtype", help="Formats to try: auto, fp8.", show_default="by device", rich_help_panel=WHAT),
]

SloFile = Annotated[Path | None, typer.Option("--slo", help="What is promised (YAML).", rich_help_panel=PROMISE)]
Ttft = Annotated[float | None, typer.Option("--ttft", help="Limit of TTFT in ms.", rich_help_panel=PROMISE)]
Tpot = Annotated[
    float | None, typer.Option("--tpot", "--itl", help="Limit of TPOT in ms, TTFT left out.", rich_help_panel=PROMISE)
]
RequestLatency = Annotated[
    float | None,
    typer.Option("--request-latency", "--e2e", help="Limit of the whole answer in ms.", rich_help_panel=PROMISE),
]
StatisticOf = Annotated[
    str | None,
    typer.Option(
        "--statistic", help="What these limit: mean, p50, p90, p95, p99.", show_default="p99",
        rich_help_panel=PROMISE,
    ),
]  # fmt: skip
IslOrNone = Annotated[int | None, typer.Option("--isl", min=1, help="Prompt tokens.", rich_help_panel=LENGTHS)]
OslOrNone = Annotated[int | None, typer.Option("--osl", min=1, help="Answer tokens.", rich_help_panel=LENGTHS)]

PrefixOf = Annotated[
    int | None, typer.Option("--prefix", min=1, help="Tokens that all prompts begin with.", rich_help_panel=LENGTHS)
]
CallersOf = Annotated[
    int | None,
    typer.Option(
        "--target-concurrency", "--concurrency", min=1, help="Callers that never pause.", rich_help_panel=LOAD
    ),
]

Systems = Annotated[
    list[str] | None,
    typer.Option(
        "--system", help="Devices, such as h100_sxm,l40s; repeat it.", show_default="all with a price",
        rich_help_panel=WHERE,
    ),
]  # fmt: skip
MostGpus = Annotated[
    int | None,
    typer.Option(
        "--total-gpus", "--max-gpus", min=1, help="GPUs at most; without a rate, the highest that they bear.",
        rich_help_panel=WHERE,
    ),
]  # fmt: skip
MaximiseRate = Annotated[
    bool,
    typer.Option("--maximise-rate", help="The highest rate of the workload's pattern.", rich_help_panel=LOAD),
]

PricesFile = Annotated[Path | None, typer.Option("--prices", help="What you pay (YAML).", rich_help_panel=COST)]
Provider = Annotated[str | None, typer.Option(help="Take offers of one provider alone.", rich_help_panel=COST)]
Region = Annotated[str | None, typer.Option(help="Take offers of one region alone.", rich_help_panel=COST)]
MostUsd = Annotated[float | None, typer.Option("--max-usd-per-hour", help="Pay at most this.", rich_help_panel=COST)]
SpotMarket = Annotated[
    str | None, typer.Option("--spot", help="Allow spot in this market of spot.yaml.", rich_help_panel=COST)
]
NoticeOf = Annotated[
    str | None,
    typer.Option("--notice", help="Provider whose notice spot gets.", show_default="aws", rich_help_panel=COST),
]
Today = Annotated[
    date | None,
    typer.Option("--today", parser=date.fromisoformat, help="Day to judge prices' age by.", rich_help_panel=COST),
]

PoolsOf = Annotated[
    str | None,
    typer.Option("--pools", help="mixed, disaggregated or any.", show_default="any", rich_help_panel=HOW),
]
Fractions = Annotated[
    bool | None,
    typer.Option(
        "--fractions/--no-fractions", help="Parts of a device, for small models.", show_default="fractions",
        rich_help_panel=HOW,
    ),
]  # fmt: skip
Confidence = Annotated[float | None, typer.Option(help="Least P(SLO met) that a plan may have.", rich_help_panel=HOW)]
VerifyTop = Annotated[
    int | None, typer.Option(min=1, help="Simulate so many plans.", show_default="8", rich_help_panel=HOW)
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the simulation.", show_default="0", rich_help_panel=HOW)]
Optimise = Annotated[Aim, typer.Option("--optimise", "--optimize", help="Which plan to take.", rich_help_panel=HOW)]

TopN = Annotated[int, typer.Option("--top-n", min=1, help="Plans to show.", rich_help_panel=OUTPUT)]
Explain = Annotated[
    bool, typer.Option("--explain", help="All reasons, changes and what was left out.", rich_help_panel=OUTPUT)
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw the plans: .png, .svg or .html.", rich_help_panel=OUTPUT)
]
SaveDir = Annotated[
    Path | None,
    typer.Option("--save-dir", help="Folder for plan.yaml, answer.json and plans.html.", rich_help_panel=OUTPUT),
]

PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan.yaml of `ferry plan -o`.", rich_help_panel=WHAT)]
Callers = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, help="Closed loop of so many callers instead.", rich_help_panel=LOAD),
]
Requests = Annotated[int, typer.Option("--requests", "--num-prompts", min=1, help="To send.", rich_help_panel=LOAD)]
SeedOr0 = Annotated[
    int, typer.Option("--seed", min=0, help="The same seed sends the same requests.", rich_help_panel=LOAD)
]
