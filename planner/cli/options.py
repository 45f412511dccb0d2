"""The flags of `ferry plan` and `ferry simulate`. Names are AIConfigurator's and vLLM's where these have one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHAT, WHERE, ENGINE, LOAD, LENGTHS, OUTPUT = "Model", "Devices", "Engine", "Load", "Requests", "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model", "--model-path", help="Name of a public model, or a folder with its config.json.", rich_help_panel=WHAT
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
    str, typer.Option("--system", help="Device, such as h100_sxm, l40s, h100_sxm:1g.10gb, l4:1/2.", rich_help_panel=WHERE)
]
OwnDevices = Annotated[
    Path | None, typer.Option("--devices", help="Devices of your own (YAML).", rich_help_panel=WHERE)
]
TotalGpus = Annotated[
    int, typer.Option("--total-gpus", "--max-gpus", min=1, help="Devices at most.", rich_help_panel=WHERE)
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
Replicas = Annotated[int, typer.Option(min=1, help="Equal engines that share the load.", rich_help_panel=ENGINE)]
Backend = Annotated[
    str, typer.Option("--backend", "--engine", help="vllm, sglang or trtllm.", rich_help_panel=ENGINE)
]
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
    typer.Option("--workload", help="Lengths and arrivals (YAML), in place of --isl and --osl.", rich_help_panel=LENGTHS),
]

Concurrency = Annotated[
    float | None,
    typer.Option(
        "--concurrency", "--target-concurrency", help="Clients that never pause.", rich_help_panel=LOAD
    ),
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
