"""The flags of `ferry profile`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.profile.design import Reach, Trial
from loadtest.profile.facts import Facts
from loadtest.profile.measure import Measured
from planner import Profile, ProfilePoint, profile_from

ENGINE, POINTS = "Engine", "Points"


System = Annotated[
    str,
    typer.Option(
        help="Device: of the catalogue, or a new name that the points then stand for.", rich_help_panel=ENGINE
    ),
]
DeviceKind = Annotated[str, typer.Option(help="gpu, npu, tpu or cpu.", rich_help_panel=ENGINE)]
MemoryGib = Annotated[float | None, typer.Option(help="Of one device, if it is new.", rich_help_panel=ENGINE)]
Shape = Annotated[
    str,
    typer.Option(
        help="The planner's name of the model, or its folder.", show_default="--model", rich_help_panel=ENGINE
    ),
]
Tp = Annotated[int, typer.Option("--tp", "--tensor-parallel-size", rich_help_panel=ENGINE)]
Pp = Annotated[int, typer.Option("--pp", "--pipeline-parallel-size", rich_help_panel=ENGINE)]
Dp = Annotated[int, typer.Option("--dp", "--data-parallel-size", rich_help_panel=ENGINE)]
Ep = Annotated[int, typer.Option(help="Devices that share out whole experts.", rich_help_panel=ENGINE)]
Replicas = Annotated[int, typer.Option(help="Engines behind the endpoint.", rich_help_panel=ENGINE)]
Quant = Annotated[str, typer.Option(help="Format of the weights.", show_default="own", rich_help_panel=ENGINE)]
Budget = Annotated[int | None, typer.Option("--max-num-batched-tokens", rich_help_panel=ENGINE)]
Sequences = Annotated[int | None, typer.Option("--max-num-seqs", rich_help_panel=ENGINE)]
MaxLen = Annotated[
    int | None, typer.Option("--max-model-len", show_default="as /v1/models says", rich_help_panel=ENGINE)
]
KvBlocks = Annotated[
    int | None, typer.Option(help="Of one engine.", show_default="as /metrics says", rich_help_panel=ENGINE)
]
BlockSize = Annotated[
    int | None, typer.Option(help="Tokens in a block.", show_default="as /metrics says", rich_help_panel=ENGINE)
]
Eager = Annotated[bool, typer.Option("--enforce-eager", rich_help_panel=ENGINE)]
Count = Annotated[int, typer.Option("--points", help="6 to 12; fewer on a small engine.", rich_help_panel=POINTS)]
Osl = Annotated[int, typer.Option("--osl", help="Output tokens of each request.", rich_help_panel=POINTS)]
Seed = Annotated[int, typer.Option(help="Mixes the lengths; words are new each time.", min=0, rich_help_panel=POINTS)]
Out = Annotated[Path, typer.Option("--out", help="Where the profile goes.", rich_help_panel=POINTS)]


# Stands for those that are not measured yet.
ANY_POINT = Measured(
    Trial(isl=1, osl=1, concurrency=1, requests=1),
    ProfilePoint.model_validate(
        {
            "isl": 1.0,
            "osl": 1.0,
            "concurrency": 1.0,
            "requests": 1,
            "ttft_ms": dict.fromkeys(("mean", "p50", "p90", "p99"), 1.0),
            "out_tok_s": 1.0,
        }
    ),
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the flags say was measured; None and "" are left to what the endpoint says, or to the engine's defaults."""

    model: str
    system: str
    kind: str
    memory_gib: float | None
    tp: int
    pp: int
    dp: int
    ep: int
    replicas: int
    quant: str
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    max_model_len_tokens: int | None
    kv_blocks: int | None
    block_size_tokens: int | None
    eager: bool

    def reach(self, facts: Facts) -> Reach:
        """Of all engines together."""
        blocks, block = self.kv_blocks or facts.kv_blocks, self.block_size_tokens or facts.block_size_tokens
        engines = self.replicas * self.dp
        return Reach(
            max_model_len_tokens=self.max_model_len_tokens or facts.max_model_len_tokens,
            max_num_seqs=self.max_num_seqs * engines if self.max_num_seqs else None,
            kv_tokens=blocks * block * engines if blocks and block else None,
        )

    def check(self, facts: Facts) -> None:
        """Better before the loads than after them. Raises PlannerError for flags that name no deployment."""
        self.profile(facts, (ANY_POINT,), on=date.min)

    def profile(self, facts: Facts, measured: Sequence[Measured], *, on: date) -> Profile:
        """The profile of the measured points. Raises PlannerError for flags that name no deployment."""
        said: dict[str, Any] = {
            "model": self.model,
            "system": self.system,
            "kind": self.kind,
            "memory_gib": self.memory_gib,
            "measured": on,
            "engine_version": facts.version or "",
            "tp": self.tp,
            "pp": self.pp,
            "dp": self.dp,
            "ep": self.ep,
            "replicas": self.replicas,
            "quant": self.quant or None,
            "eager": self.eager,
            "async_scheduling": self.kind != "cpu",  # vLLM turns it off there
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "kv_blocks": self.kv_blocks or facts.kv_blocks,
            "block_size_tokens": self.block_size_tokens or facts.block_size_tokens,
            "note": "; ".join(dict.fromkeys(doubt for one in measured for doubt in one.doubts)),
            "points": tuple(one.point for one in measured),
        }
        return profile_from(said, file="the flags of ferry profile")
