"""What an endpoint says about its engine, where it says so: vLLM's /version, /v1/models and /metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from loadtest.endpoint import MODELS, get
from loadtest.types import Target

T = TypeVar("T")

_CACHE = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Facts:
    """None: it did not say."""

    model: str | None = None
    version: str | None = None
    max_model_len_tokens: int | None = None
    kv_blocks: int | None = None
    block_size_tokens: int | None = None

    @property
    def kv_tokens(self) -> int | None:
        if self.kv_blocks is None or self.block_size_tokens is None:
            return None
        return self.kv_blocks * self.block_size_tokens


def facts_of(target: Target) -> Facts:
    """Asks three pages; what is not there, or not in the form that we know, stays None.

    Raises LoadTestError if nobody answers at all.
    """
    model, longest = _page(target, MODELS, read_models) or (None, None)
    blocks, block_size = _page(target, "/metrics", read_metrics) or (None, None)
    return Facts(model, _page(target, "/version", read_version), longest, blocks, block_size)


def read_models(body: bytes) -> tuple[str | None, int | None]:
    """The first model's name and longest context, from the body of /v1/models."""
    first = json.loads(body)["data"][0]
    longest = first.get("max_model_len")
    return str(first["id"]), longest if isinstance(longest, int) else None


def read_version(body: bytes) -> str:
    return str(json.loads(body)["version"])


def read_metrics(body: bytes) -> tuple[int | None, int | None]:
    """KV blocks and block size of the smallest engine, from a Prometheus page."""
    engines = [dict(_LABEL.findall(line)) for line in _CACHE.findall(body)]
    known = [(int(one[b"num_gpu_blocks"]), int(one[b"block_size"])) for one in engines]
    return min(known) if known else (None, None)


def _page(target: Target, path: str, read: Callable[[bytes], T]) -> T | None:
    status, body = get(target, path)
    if status != 200:
        return None
    try:
        return read(body)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # another server's page
