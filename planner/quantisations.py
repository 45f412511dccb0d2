"""How weights are stored: bits, scales, and which tensors stay unquantised."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from planner.types import PlannerError


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """A storage format of weight matrices. Only linear layers take it; `ignored` ones keep the model's dtype.

    A scale belongs to `group_rows` × `group_cols` weights; 0 means the whole side of the matrix.
    """

    name: str
    weight_bits: int
    # The number type that the matrix products run in where the device has it; w4a16 formats run in 16 bits.
    compute_dtype: str
    group_rows: int = 0
    group_cols: int = 0
    scale_bytes: int = 0
    zero_point_bits: int = 0
    ignored: tuple[str, ...] = ()

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes of one stored matrix with its scales and zero points."""
        groups = -(-rows // (self.group_rows or rows)) * -(-cols // (self.group_cols or cols))
        bits = rows * cols * self.weight_bits + groups * (8 * self.scale_bytes + self.zero_point_bits)
        return -(-bits // 8)

    @property
    def kind(self) -> str:
        """The number type of the weights, however their scales are laid out: fp8, int8, int4, fp4, or a plain one."""
        return "fp4" if self.name in ("nvfp4", "mxfp4") else self.name.partition("_")[0]

    def ignores(self, module: str) -> bool:
        """Whether `module` (such as `model.layers.0.self_attn.q_proj`) keeps the model's own dtype."""
        return any(_matches(pattern, module) for pattern in self.ignored)


def _matches(pattern: str, module: str) -> bool:
    """Checkpoint makers write full names, prefixes of modules, globs, and (after `re:`) regular expressions."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, f"{pattern}.*")
    return module == pattern or f".{pattern}." in f".{module}."


def _floats(dtype: str, size_bytes: int) -> Quantisation:
    return Quantisation(name=dtype, weight_bits=8 * size_bytes, compute_dtype=dtype)


# What a scale costs: compressed-tensors, AutoAWQ, AutoGPTQ and ModelOpt all store them as said here.
FORMATS: Mapping[str, Quantisation] = MappingProxyType(
    {
        "float32": _floats("float32", 4),
        "bfloat16": _floats("bfloat16", 2),
        "float16": _floats("float16", 2),
        "fp8": Quantisation(name="fp8", weight_bits=8, compute_dtype="fp8", scale_bytes=4),
        "fp8_channel": Quantisation(
            name="fp8_channel", weight_bits=8, compute_dtype="fp8", group_rows=1, scale_bytes=4
        ),
        "fp8_block": Quantisation(
            name="fp8_block", weight_bits=8, compute_dtype="fp8", group_rows=128, group_cols=128, scale_bytes=4
        ),
        "int8": Quantisation(name="int8", weight_bits=8, compute_dtype="int8", group_rows=1, scale_bytes=4),
        "int8_w8a16": Quantisation(
            name="int8_w8a16", weight_bits=8, compute_dtype="bfloat16", group_rows=1, scale_bytes=2
        ),
        "int4": Quantisation(
            name="int4", weight_bits=4, compute_dtype="bfloat16", group_rows=1, group_cols=128, scale_bytes=2
        ),
        "int4_awq": Quantisation(
            name="int4_awq",
            weight_bits=4,
            compute_dtype="bfloat16",
            group_rows=1,
            group_cols=128,
            scale_bytes=2,
            zero_point_bits=4,
        ),
        "nvfp4": Quantisation(
            name="nvfp4", weight_bits=4, compute_dtype="fp4", group_rows=1, group_cols=16, scale_bytes=1
        ),
        "mxfp4": Quantisation(
            name="mxfp4", weight_bits=4, compute_dtype="bfloat16", group_rows=1, group_cols=32, scale_bytes=1
        ),
    }
)

# What people write in tables and on command lines.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "bf16": "bfloat16",
        "fp16": "float16",
        "half": "float16",
        "fp32": "float32",
        "float": "float32",
        "fp8_e4m3": "fp8",
        "fp8_e5m2": "fp8",
        "float8_e4m3fn": "fp8",
        "float8_e5m2": "fp8",
        "w8a8": "int8",
        "int8_w8a8": "int8",
        "awq": "int4_awq",
        "gptq": "int4",
        "w4a16": "int4",
        "int4_w4a16": "int4",
        "int4_gptq": "int4",
        "uint4": "int4",
        "fp4": "nvfp4",
    }
)


def quantisation(name: str, *, file: str = "settings", key: str = "quantisation") -> Quantisation:
    """The format called `name` (aliases and any case allowed). Raises PlannerError if unknown."""
    asked = name.lower().removeprefix("torch.")
    found = FORMATS.get(ALIASES.get(asked, asked))
    if found is None:
        known = ", ".join([*FORMATS, *ALIASES])
        raise PlannerError(file, key, name, "not a weight format we know", f"use one of: {known}")
    return found
