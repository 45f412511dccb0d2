"""What a gateway needs to know to start. Light: the launching process makes it without importing vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from serving.engine.process import EngineSpec
from serving.settings import GatewaySettings


@dataclass(frozen=True, kw_only=True)
class GatewaySpec:
    """`engine` shapes the front end: lengths, tokenizer, dtype. `needs_prefill`: some pool only prefills."""

    settings: GatewaySettings
    engine: EngineSpec
    admin_token: str
    needs_prefill: bool
