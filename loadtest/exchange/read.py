"""Whose results a file holds, and what they are. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from loadtest.document import Document
from loadtest.exchange.aiperf import is_aiperf, read_aiperf
from loadtest.exchange.guidellm import is_guidellm, read_guidellm
from loadtest.exchange.inference_perf import is_inference_perf, read_inference_perf
from loadtest.exchange.vllm_bench import is_vllm_bench, read_vllm_bench
from loadtest.types import LoadTestError

KNOWN = (
    "`vllm bench serve --save-result`, aiperf's profile_export_aiperf.json, GuideLLM's benchmarks.json or "
    "inference-perf's summary_lifecycle_metrics.json"
)

_SPACE = re.compile(r"\s*")


def read_results(raw: bytes, name: str) -> list[Document]:
    """At least one. Raises LoadTestError, with `name`, for a file of no tool that we know."""
    documents: list[Document] = []
    for place, tree in enumerate(_trees(raw, name)):
        if is_guidellm(tree):
            documents += read_guidellm(tree, raw)
        elif is_vllm_bench(tree):
            documents.append(read_vllm_bench(tree, raw, place))
        elif is_aiperf(tree):
            documents.append(read_aiperf(tree, raw, place))
        elif is_inference_perf(tree):
            documents.append(read_inference_perf(tree, raw, place))
        else:
            raise LoadTestError(f"{name} is not a result of {KNOWN}")
    if not documents:
        raise LoadTestError(f"{name} holds no result")
    return documents


def _trees(raw: bytes, name: str) -> list[Any]:
    """One JSON value, or several one after the other: `--append-result` writes them so."""
    decoder, trees, at = json.JSONDecoder(), [], 0
    try:
        text = raw.decode().strip()
        while at < len(text):
            tree, at = decoder.raw_decode(text, at)
            trees.append(tree)
            at += len(_SPACE.match(text, at)[0])  # type: ignore[index]  # it matches everywhere
    except (ValueError, RecursionError) as error:
        raise LoadTestError(f"{name} is no JSON: {error}") from error
    return trees
