"""Which layer holds what: families write it as lists, periods, offsets, intervals or a string of letters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from planner.models import Layer, Mixer
from planner.reader import Reader

# Nemotron-H writes one letter per layer, and its layers hold either a mixer or an MLP.
PATTERN: Mapping[str, Layer] = MappingProxyType(
    {
        "M": Layer(mixer="mamba2", mlp="none"),
        "*": Layer(mixer="full", mlp="none"),
        "-": Layer(mixer="none", mlp="dense"),
        "E": Layer(mixer="none", mlp="moe"),
    }
)
MIXERS: Mapping[str, Mixer] = MappingProxyType(
    {
        "full_attention": "full",
        "attention": "full",
        "sliding_attention": "sliding",
        "chunked_attention": "chunked",
        "linear_attention": "linear",
        "mamba": "mamba2",
    }
)
# Ten times what the deepest public model has; a typing error must not fill the memory.
MAX_LAYERS = 2000
# Where the config does not list the layers, every n-th has full attention and the others a window.
WINDOW_PATTERNS: Mapping[str, int] = MappingProxyType({"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2})
# Families whose config names a window that all layers use.
ALL_WINDOWED = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})


def layers_of(reader: Reader, model_type: str, *, has_experts: bool) -> tuple[Layer, ...]:
    """The layers in order. Raises PlannerError for kinds that are not planned and lists of the wrong length."""
    if reader.has("hybrid_override_pattern"):
        return _from_pattern(reader, "hybrid_override_pattern", has_experts=has_experts)
    key = reader.first("num_hidden_layers", "n_layer")
    count = reader.count(key)
    if count > MAX_LAYERS:
        raise reader.error(key, f"more than {MAX_LAYERS} layers cannot be meant")
    mixers = _mixers(reader, model_type, count)
    experts = _expert_layers(reader, model_type, count) if has_experts else frozenset()
    return tuple(Layer(mixer=mixers[index], mlp="moe" if index in experts else "dense") for index in range(count))


def _from_pattern(reader: Reader, key: str, *, has_experts: bool) -> tuple[Layer, ...]:
    letters = reader.text(key, default="")
    odd = set(letters) - PATTERN.keys()
    if odd or not letters or ("E" in letters and not has_experts):
        raise reader.error(key, f"only the letters {' '.join(PATTERN)} are known, E only with experts")
    return tuple(PATTERN[letter] for letter in letters)


def _mixers(reader: Reader, model_type: str, count: int) -> list[Mixer]:
    if reader.has("attn_layer_period"):
        period, offset = reader.count("attn_layer_period"), reader.whole("attn_layer_offset")
        return ["full" if index % period == offset % period else "mamba1" for index in range(count)]
    key = reader.first("layer_types", "layers_block_type")
    if reader.has(key):
        return _listed(reader, key, count)
    if reader.has("full_attention_interval"):
        return _every(reader.count("full_attention_interval"), "linear", count)
    if model_type.startswith("llama4") and reader.has("attention_chunk_size"):
        return _every(reader.count("no_rope_layer_interval", default=4), "chunked", count)
    windowed = reader.has("sliding_window") and reader.flag("use_sliding_window", default=model_type in ALL_WINDOWED)
    interval = reader.count("sliding_window_pattern", default=WINDOW_PATTERNS.get(model_type, 1))
    if interval > 1 and reader.has("sliding_window"):
        return _every(interval, "sliding", count)
    if not windowed:
        return ["full"] * count
    whole = reader.whole("max_window_layers") if model_type.startswith("qwen") else 0
    return ["full" if index < whole else "sliding" for index in range(count)]


def _listed(reader: Reader, key: str, count: int) -> list[Mixer]:
    names = reader.items(key)
    odd = [name for name in names if str(name) not in MIXERS]
    if odd:
        remedy = "choose a model whose layers use full, sliding, chunked or linear attention, or Mamba"
        raise reader.error(key, f"{odd[0]!r} is not a kind of layer that is planned", remedy=remedy)
    if len(names) != count:
        raise reader.error(key, f"names {len(names)} layers, but the model has {count}")
    return [MIXERS[str(name)] for name in names]


def _every(interval: int, otherwise: Mixer, count: int) -> list[Mixer]:
    """The last of each `interval` layers has full attention."""
    return ["full" if (index + 1) % interval == 0 else otherwise for index in range(count)]


def _expert_layers(reader: Reader, model_type: str, count: int) -> frozenset[int]:
    """The layers with experts in place of an MLP."""
    if reader.has("moe_layers"):
        return frozenset(index for index in range(count) if index in reader.items("moe_layers"))
    if reader.has("interleave_moe_layer_step"):
        step = reader.count("interleave_moe_layer_step")
        return frozenset(range(step - 1, count, step))
    if reader.has("expert_layer_period"):
        period, offset = reader.count("expert_layer_period"), reader.whole("expert_layer_offset")
        return frozenset(index for index in range(count) if index % period == offset % period)
    frequency = reader.config.get("moe_layer_freq")
    if isinstance(frequency, list):
        return frozenset(index for index, flag in enumerate(frequency[:count]) if flag)
    step = reader.count(reader.first("decoder_sparse_step", "moe_layer_freq"), default=1)
    dense = reader.items("mlp_only_layers")
    first = reader.whole("first_k_dense_replace")
    # Qwen counts its steps from 1, DeepSeek from 0; with a step of 1 both mean every layer.
    shift = 1 if reader.has("decoder_sparse_step") else 0
    return frozenset(i for i in range(first, count) if (i + shift) % step == 0 and i not in dense)
