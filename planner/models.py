"""A model's shape: the integers that decide its memory and its speed.

Every figure follows from one table, `ModelShape.tensors`: parameters, active parameters, bytes of each device.
Understood: decoder-only models of dense or expert (MoE) layers over full, sliding or chunked attention (multi-head,
grouped-query, or multi-head latent, MLA), Mamba 1 and 2, and gated delta nets. Encoders of images are not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from planner.families import LLAMA, Family
from planner.quantisations import FORMATS, Quantisation, quantisation
from planner.split import Split, stage_layers
from planner.tensors import Tensor, model_tensors
from planner.types import PlannerError, dtype_bytes

Mixer = Literal["full", "sliding", "chunked", "mamba1", "mamba2", "linear", "none"]
Mlp = Literal["dense", "moe", "none"]

ATTENTION = frozenset({"full", "sliding", "chunked"})
STATE = frozenset({"mamba1", "mamba2", "linear"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one layer holds: something that mixes tokens, then something that works on each alone."""

    mixer: Mixer = "full"
    mlp: Mlp = "dense"


@dataclass(frozen=True, kw_only=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, section 2.1). `q_lora_rank` is None where queries stay whole."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def latent_dim(self) -> int:
        """Numbers kept per token and layer: one vector for keys and values, one rotary key for all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture-of-experts layer. `shared_intermediate_size` is the width of all shared experts together, or 0."""

    count: int
    per_token: int
    intermediate_size: int
    shared_count: int = 0
    shared_intermediate_size: int = 0


@dataclass(frozen=True, kw_only=True)
class State:
    """A recurrent mixer. Mamba: `value_heads` heads of `value_dim`, state `key_dim` wide, `key_heads` groups.

    Gated delta net: `key_heads` × `key_dim` keys, `value_heads` × `value_dim` values. Mamba 1 has one head.
    """

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    conv_kernel: int
    dt_rank: int = 0
    dtype: str = "auto"  # of the recurrent state; `auto` is the model's

    @property
    def inner_size(self) -> int:
        return self.value_heads * self.value_dim


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What config.json says. Fields are of one whole model; methods split them over `tp` × `pp` devices.

    `ep` is the number of devices that share out whole experts; at 1 tensor parallelism cuts each expert instead.
    """

    model_type: str
    layers: tuple[Layer, ...]
    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    dtype: str
    mla: Mla | None = None
    experts: Experts | None = None
    state: State | None = None
    sliding_window: int | None = None  # tokens; of `chunked` layers the size of a chunk
    quantisation: Quantisation = FORMATS["bfloat16"]
    family: Family = LLAMA
    name: str = ""
    # What had to be assumed, in words for a report; empty when the family is known.
    assumptions: tuple[str, ...] = field(default=())

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_dense_layers(self) -> int:
        """Layers with an ordinary MLP."""
        return sum(layer.mlp == "dense" for layer in self.layers)

    @property
    def num_moe_layers(self) -> int:
        return sum(layer.mlp == "moe" for layer in self.layers)

    @property
    def num_attention_layers(self) -> int:
        return sum(layer.mixer in ATTENTION for layer in self.layers)

    @property
    def num_state_layers(self) -> int:
        return sum(layer.mixer in STATE for layer in self.layers)

    @property
    def num_experts(self) -> int:
        return self.experts.count if self.experts else 1

    @property
    def experts_per_token(self) -> int:
        return self.experts.per_token if self.experts else 0

    @property
    def mla_latent_dim(self) -> int | None:
        return self.mla.latent_dim if self.mla else None

    def mixers(self, *, stage: int = 0, pp: int = 1) -> Counter[Mixer]:
        """How many layers of each mixer stand in one pipeline stage."""
        return Counter(self.layers[index].mixer for index in stage_layers(self.num_layers, stage, pp))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every weight of the model, matrix by matrix."""
        return model_tensors(self)

    @property
    def params(self) -> int:
        """All parameters, without draft layers (MTP) and encoders of images."""
        return sum(tensor.params for tensor in self.tensors)

    @property
    def active_params_per_token(self) -> int:
        """Parameters that one token meets: all but the experts it is not routed to. Embeddings count."""
        return sum(tensor.params // tensor.copies * self._met(tensor) for tensor in self.tensors)

    def _met(self, tensor: Tensor) -> int:
        return min(self.experts_per_token, tensor.copies) if tensor.part == "experts" else tensor.copies

    def params_by_part(self, *, active: bool = False) -> Counter[str]:
        """Parameters of each part (`planner.tensors.PARTS`); with `active`, only those that one token meets."""
        parts: Counter[str] = Counter()
        for tensor in self.tensors:
            parts[tensor.part] += tensor.params // tensor.copies * (self._met(tensor) if active else tensor.copies)
        return parts

    def quantised(self, quant: str | None) -> ModelShape:
        """This model stored as `quant`; a checkpoint of that kind already keeps its own scales and exceptions.

        Raises PlannerError for an unknown format.
        """
        if quant is None or quantisation(quant).kind == self.quantisation.kind:
            return self
        return replace(self, quantisation=quantisation(quant))

    def weight_bytes(
        self,
        *,
        exact_bytes: int | None = None,
        quant: str | None = None,
        tp: int = 1,
        pp: int = 1,
        ep: int = 1,
        stage: int | None = None,
    ) -> int:
        """Bytes of weights on a device of `stage`, or of the fullest stage. Raises PlannerError.

        `exact_bytes`, if the caller has counted the whole model's files, is split as the shapes say.
        """
        if exact_bytes is not None and tp == pp == ep == 1:
            return exact_bytes
        counted = self.weight_bytes_by_part(quant=quant, tp=tp, pp=pp, ep=ep, stage=stage).total()
        if exact_bytes is None:
            return counted
        return -(-exact_bytes * counted // self.weight_bytes_by_part(quant=quant).total())

    def weight_bytes_by_part(
        self, *, quant: str | None = None, tp: int = 1, pp: int = 1, ep: int = 1, stage: int | None = None
    ) -> Counter[str]:
        """`weight_bytes` by part (`planner.tensors.PARTS`). Raises PlannerError."""
        stored = self.quantised(quant)
        stages = range(pp) if stage is None else (stage,)
        parts = [stored._stage_bytes(Split(tp=tp, pp=pp, ep=ep, stage=index)) for index in stages]
        return max(parts, key=Counter.total)

    def _stage_bytes(self, split: Split) -> Counter[str]:
        split.check(self)
        held, plain_bytes = stage_layers(self.num_layers, split.stage, split.pp), dtype_bytes(self.dtype)
        parts: Counter[str] = Counter()
        for tensor in self.tensors:
            if split.holds(tensor, held):
                parts[tensor.part] += split.share(tensor, tensor.stored_bytes(self.quantisation, plain_bytes))
        return parts

    def kv_bytes_per_layer(self, *, dtype: str = "auto", tp: int = 1) -> int:
        """Bytes per token of one attention layer on one device: MLA is kept whole on each, KV heads are copied
        where there are fewer than devices. Raises PlannerError for an unknown number type.
        """
        number_bytes = dtype_bytes(self.dtype if dtype == "auto" else dtype, key="kv_cache_dtype")
        heads = -(-self.num_kv_heads // tp)
        return (self.mla_latent_dim or 2 * heads * self.head_dim) * number_bytes

    def kv_bytes_per_token(self, *, dtype: str = "auto", tp: int = 1, pp: int = 1) -> int:
        """Bytes of KV cache per token on the fullest device, in `dtype` (`auto`: the model's own).

        Sliding windows are ignored, so for such models this is an upper bound; layers that keep a state have
        none. Raises PlannerError for an unknown number type.
        """
        stages = [self.mixers(stage=stage, pp=pp) for stage in range(pp)]
        layers = max(sum(count for mixer, count in stage.items() if mixer in ATTENTION) for stage in stages)
        return layers * self.kv_bytes_per_layer(dtype=dtype, tp=tp)

    def kv_bytes_of_context(self, tokens: int, *, dtype: str = "auto", tp: int = 1) -> int:
        """Bytes that a context of `tokens` needs on one device: windows count, whole blocks and stages do not."""
        held = {"full": tokens, "sliding": min(tokens, self.sliding_window or tokens)}
        held["chunked"] = held["sliding"]
        layers = self.mixers()
        kv_tokens = sum(layers[mixer] * held[mixer] for mixer in ("full", "sliding", "chunked"))
        return kv_tokens * self.kv_bytes_per_layer(dtype=dtype, tp=tp) + self.state_bytes_per_request(tp=tp)

    def state_bytes_per_layer(self, mixer: Mixer, *, tp: int = 1) -> int:
        """Bytes of one request's state in one `mamba1`, `mamba2` or `linear` layer: recurrent and convolution."""
        if self.state is None:
            raise PlannerError("config.json", "layer_types", mixer, "no state size is known", "name a model with one")
        state, conv_bytes = self.state, dtype_bytes(self.dtype)
        state_bytes = conv_bytes if state.dtype == "auto" else dtype_bytes(state.dtype, key="state dtype")
        inner, keys = -(-state.inner_size // tp), -(-state.key_heads // tp) * state.key_dim
        channels = {"mamba1": inner, "mamba2": inner + 2 * keys, "linear": inner + 2 * keys}[mixer]
        return inner * state.key_dim * state_bytes + channels * (state.conv_kernel - 1) * conv_bytes

    def state_bytes_per_request(self, *, tp: int = 1, pp: int = 1) -> int:
        """Bytes of state that each request keeps on the fullest device, whatever its length; 0 without such layers."""
        stages = [self.mixers(stage=stage, pp=pp) for stage in range(pp)]
        return max(
            sum(count * self.state_bytes_per_layer(mixer, tp=tp) for mixer, count in stage.items() if mixer in STATE)
            for stage in stages
        )
