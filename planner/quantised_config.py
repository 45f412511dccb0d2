"""A checkpoint's `quantization_config` as a Quantisation; each maker of checkpoints writes another dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from planner.quantisations import FORMATS, Quantisation
from planner.reader import Reader

REMEDY = "name the weight format yourself, or choose a checkpoint in fp8, int8, int4 (AWQ, GPTQ), nvfp4 or mxfp4"
IGNORED_KEYS = ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")

# Vision-language checkpoints put the text model below one of these; the planner sees the text model alone.
TEXT_MODEL_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")


def quantised(reader: Reader) -> Quantisation:
    """The format that a non-empty `quantization_config` declares. Raises PlannerError for one we do not know."""
    method = reader.text("quant_method", default="modelopt" if reader.has("quant_algo") else "")
    read = METHODS.get(method.lower())
    if read is None:
        raise reader.error("quant_method", "not a quantisation we know", remedy=REMEDY)
    return replace(read(reader), ignored=_ignored(reader))


def _ignored(reader: Reader) -> tuple[str, ...]:
    names = [str(name) for key in IGNORED_KEYS for name in reader.items(key)]
    return tuple(_without_prefix(name) for name in names)


def _without_prefix(name: str) -> str:
    for prefix in TEXT_MODEL_PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return rest if rest.startswith(("lm_head", "model.")) else f"model.{rest}"
    return name


def _fp8(reader: Reader) -> Quantisation:
    block = reader.items("weight_block_size")
    return _blocks(reader, "weight_block_size", block) if block else FORMATS["fp8"]


def _blocks(reader: Reader, key: str, block: list[object]) -> Quantisation:
    if len(block) != 2 or not all(isinstance(side, int) and side > 0 for side in block):
        raise reader.error(key, "two positive whole numbers are needed")
    rows, cols = (int(str(side)) for side in block)
    return replace(FORMATS["fp8_block"], group_rows=rows, group_cols=cols)


def _compressed_tensors(reader: Reader) -> Quantisation:
    """Several groups of layers may each have a format; planned is one format, so they must agree."""
    groups = reader.section("config_groups")
    found = {_group(groups.section(name)) for name in groups.config}
    if len(found) != 1:
        raise reader.error("config_groups", "one weight format for all layers is needed", remedy=REMEDY)
    return found.pop()


def _group(reader: Reader) -> Quantisation:
    weights = reader.section("weights")
    bits, kind = weights.count("num_bits"), weights.text("type", default="int")
    strategy, group = weights.text("strategy", default="tensor"), weights.whole("group_size")
    if kind == "float" and bits == 4:
        return FORMATS["nvfp4"] if group == 16 else FORMATS["mxfp4"]
    if kind == "float" and bits == 8:
        if strategy == "block":
            return _blocks(weights, "block_structure", weights.items("block_structure"))
        return FORMATS["fp8_channel" if strategy == "channel" else "fp8"]
    if kind == "int" and bits == 8:
        return FORMATS["int8" if reader.has("input_activations") else "int8_w8a16"]
    if kind == "int" and bits == 4:
        return _int4(group=group, zero_point=not weights.flag("symmetric", default=True))
    raise weights.error("num_bits", f"no format with {bits}-bit {kind} weights is known", remedy=REMEDY)


def _int4(*, group: int, zero_point: bool) -> Quantisation:
    """A group of 0 is a whole row."""
    return replace(FORMATS["int4_awq" if zero_point else "int4"], group_cols=group)


def _awq(reader: Reader) -> Quantisation:
    if reader.whole(reader.first("bits", "w_bit"), default=4) != 4:
        raise reader.error("bits", "AWQ has 4-bit weights", remedy=REMEDY)
    group = reader.whole(reader.first("group_size", "q_group_size"), default=128)
    return _int4(group=group, zero_point=reader.flag("zero_point", default=True))


def _gptq(reader: Reader) -> Quantisation:
    bits = reader.count("bits", default=4)
    # -1 stands for one group per row.
    value = reader.config.get("group_size")
    group = 0 if value == -1 else reader.whole("group_size", default=128)
    if bits == 4:
        return _int4(group=group, zero_point=not reader.flag("sym", default=True))
    if bits == 8:
        return replace(FORMATS["int8_w8a16"], group_cols=group)
    raise reader.error("bits", "GPTQ is planned with 4 or 8 bits", remedy=REMEDY)


def _modelopt(reader: Reader) -> Quantisation:
    section = reader if reader.has("quant_algo") else reader.section("quantization")
    algorithm = section.text("quant_algo", default="").upper()
    names = {"FP8": "fp8", "NVFP4": "nvfp4", "FP8_PER_CHANNEL_PER_TOKEN": "fp8_channel", "FP8_PB_WO": "fp8_block"}
    if algorithm not in names:
        raise section.error("quant_algo", "not an algorithm we know", remedy=REMEDY)
    return FORMATS[names[algorithm]]


def _bitsandbytes(reader: Reader) -> Quantisation:
    if reader.flag("load_in_8bit", default=False):
        return FORMATS["int8_w8a16"]
    return replace(FORMATS["int4"], name="int4_bitsandbytes", group_cols=64, scale_bytes=4)


METHODS: Mapping[str, Callable[[Reader], Quantisation]] = MappingProxyType(
    {
        "fp8": _fp8,
        "fbgemm_fp8": lambda reader: FORMATS["fp8_channel"],
        "compressed-tensors": _compressed_tensors,
        "awq": _awq,
        "gptq": _gptq,
        "mxfp4": lambda reader: FORMATS["mxfp4"],
        "modelopt": _modelopt,
        "modelopt_fp4": _modelopt,
        "bitsandbytes": _bitsandbytes,
    }
)
