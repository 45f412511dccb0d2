"""The weights of a model as a table of matrices, layer by layer, named as in Hugging Face checkpoints.

One row holds what every figure needs: its size, how many alike there are, into how many pieces tensor parallelism may
cut it (1: every device has all of it), and whether a quantised checkpoint packs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from planner.quantisations import Quantisation

if TYPE_CHECKING:
    from planner.models import Layer, ModelShape

# Where a tensor outside the layers stands in a pipeline: tied embeddings serve both ends.
Place = Literal["first", "last", "both"]
Part = Literal["embedding", "lm_head", "attention", "state", "mlp", "router", "experts", "shared_experts", "norms"]
PARTS: tuple[Part, ...] = (
    "embedding",
    "lm_head",
    "attention",
    "state",
    "mlp",
    "router",
    "experts",
    "shared_experts",
    "norms",
)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """`copies` matrices of `rows` × `cols` (outputs × inputs); `units` is how many pieces they may be cut into."""

    part: Part
    name: str
    rows: int
    cols: int = 1
    copies: int = 1
    units: int = 1
    linear: bool = True  # a matrix product, which quantised checkpoints pack; False: always the model's dtype
    layer: int | None = None
    place: Place = "first"  # of a tensor outside the layers

    @property
    def params(self) -> int:
        return self.rows * self.cols * self.copies

    @property
    def module(self) -> str:
        """The full name that a checkpoint's list of unquantised modules would use."""
        return self.name if self.layer is None else f"model.layers.{self.layer}.{self.name}"

    def stored_bytes(self, stored: Quantisation, plain_bytes: int) -> int:
        """Bytes of all copies; what is not quantised takes `plain_bytes` per number."""
        packs = self.linear and not stored.ignores(self.module)
        return self.copies * stored.matrix_bytes(self.rows, self.cols) if packs else self.params * plain_bytes


def model_tensors(shape: ModelShape) -> tuple[Tensor, ...]:
    """All tensors of `shape`, embeddings first."""
    rows = list(_ends(shape))
    for index, layer in enumerate(shape.layers):
        rows += [replace(tensor, layer=index) for tensor in layer_tensors(shape, layer)]
    return tuple(rows)


def layer_tensors(shape: ModelShape, layer: Layer) -> Iterator[Tensor]:
    """The tensors of one layer, without its index."""
    if layer.mixer in ("full", "sliding", "chunked"):
        yield from _mla(shape) if shape.mla else _attention(shape)
    elif layer.mixer == "mamba1":
        yield from _mamba1(shape)
    elif layer.mixer == "mamba2":
        yield from _mamba2(shape)
    elif layer.mixer == "linear":
        yield from _delta_net(shape)
    if layer.mlp == "dense":
        yield from _mlp(shape, shape.intermediate_size)
    elif layer.mlp == "moe":
        yield from _moe(shape)
    whole = layer.mixer != "none" and layer.mlp != "none"
    for index in range(shape.family.norms if whole else 1):
        yield from _norm(shape, f"norm_{index}", shape.hidden_size)


def _ends(shape: ModelShape) -> Iterator[Tensor]:
    family, hidden, vocab = shape.family, shape.hidden_size, shape.vocab_size
    place: Place = "both" if shape.tied_embeddings else "first"
    yield _plain("embedding", "model.embed_tokens", vocab, hidden, units=vocab, place=place)
    if family.learned_positions:
        positions = shape.max_position_embeddings + family.extra_positions
        yield _plain("embedding", "model.embed_positions", positions, hidden)
    if family.embedding_norm:
        yield from _norm(shape, "model.embed_norm", hidden)
    if not shape.tied_embeddings:
        yield _plain("lm_head", "lm_head", vocab, hidden, units=vocab, place="last")
    if family.head_bias:
        yield _plain("lm_head", "lm_head.bias", vocab, units=vocab, place="last")
    for norm in _norm(shape, "model.norm", hidden):
        yield replace(norm, place="last")


def _attention(shape: ModelShape) -> Iterator[Tensor]:
    family, hidden = shape.family, shape.hidden_size
    heads, kv_heads, head_dim = shape.num_attention_heads, shape.num_kv_heads, shape.head_dim
    query_rows = heads * head_dim * (2 if family.gated_attention else 1)
    sides = (
        ("q_proj", query_rows, heads),
        ("k_proj", kv_heads * head_dim, kv_heads),
        ("v_proj", kv_heads * head_dim, kv_heads),
    )
    for name, rows, units in sides:
        yield Tensor(part="attention", name=f"self_attn.{name}", rows=rows, cols=hidden, units=units)
        if family.qkv_bias:
            yield _plain("attention", f"self_attn.{name}.bias", rows, units=units)
    yield Tensor(part="attention", name="self_attn.o_proj", rows=hidden, cols=heads * head_dim, units=heads)
    if family.out_bias:
        yield _plain("attention", "self_attn.o_proj.bias", hidden)
    if family.qk_norm:
        for name, count in (("q_norm", heads), ("k_norm", kv_heads)):
            yield _plain("norms", f"self_attn.{name}", head_dim * (count if family.qk_norm == "full" else 1))
    if family.sinks:
        yield _plain("attention", "self_attn.sinks", heads, units=heads)


def _mla(shape: ModelShape) -> Iterator[Tensor]:
    mla, hidden, heads = shape.mla, shape.hidden_size, shape.num_attention_heads
    assert mla is not None
    query_rows = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank is None:
        yield Tensor(part="attention", name="self_attn.q_proj", rows=query_rows, cols=hidden, units=heads)
    else:
        yield Tensor(part="attention", name="self_attn.q_a_proj", rows=mla.q_lora_rank, cols=hidden)
        yield _plain("norms", "self_attn.q_a_layernorm", mla.q_lora_rank)
        yield Tensor(part="attention", name="self_attn.q_b_proj", rows=query_rows, cols=mla.q_lora_rank, units=heads)
    yield Tensor(part="attention", name="self_attn.kv_a_proj_with_mqa", rows=mla.latent_dim, cols=hidden)
    yield _plain("norms", "self_attn.kv_a_layernorm", mla.kv_lora_rank)
    kv_rows = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield Tensor(part="attention", name="self_attn.kv_b_proj", rows=kv_rows, cols=mla.kv_lora_rank, units=heads)
    yield Tensor(part="attention", name="self_attn.o_proj", rows=hidden, cols=heads * mla.v_head_dim, units=heads)


def _mlp(shape: ModelShape, width: int, part: Part = "mlp", prefix: str = "mlp", copies: int = 1) -> Iterator[Tensor]:
    """One gated or plain MLP; `copies` of them are the experts of a layer."""
    hidden, gated = shape.hidden_size, shape.family.gated_mlp
    bias = shape.family.expert_bias if part == "experts" else shape.family.mlp_bias
    for name, rows, cols in (("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)):
        if name == "gate_proj" and not gated:
            continue
        yield Tensor(part=part, name=f"{prefix}.{name}", rows=rows, cols=cols, copies=copies, units=width)
        if bias:
            units = 1 if name == "down_proj" else width
            yield _plain(part, f"{prefix}.{name}.bias", rows, copies=copies, units=units)


def _moe(shape: ModelShape) -> Iterator[Tensor]:
    experts, hidden = shape.experts, shape.hidden_size
    assert experts is not None
    yield _plain("router", "mlp.gate", experts.count, hidden)
    if shape.family.router_bias:
        yield _plain("router", "mlp.gate.bias", experts.count)
    yield from _mlp(shape, experts.intermediate_size, "experts", "mlp.experts", experts.count)
    if experts.shared_intermediate_size:
        yield from _mlp(shape, experts.shared_intermediate_size, "shared_experts", "mlp.shared_experts")
        if shape.family.shared_gate:
            yield _plain("shared_experts", "mlp.shared_expert_gate", 1, hidden)


def _mamba1(shape: ModelShape) -> Iterator[Tensor]:
    state, hidden = shape.state, shape.hidden_size
    assert state is not None
    inner, width, dt_rank = state.inner_size, state.key_dim, state.dt_rank
    yield Tensor(part="state", name="mamba.in_proj", rows=2 * inner, cols=hidden, units=inner)
    yield _plain("state", "mamba.conv1d", inner, state.conv_kernel, units=inner)
    yield _plain("state", "mamba.conv1d.bias", inner, units=inner)
    yield Tensor(part="state", name="mamba.x_proj", rows=dt_rank + 2 * width, cols=inner, units=inner)
    yield Tensor(part="state", name="mamba.dt_proj", rows=inner, cols=dt_rank, units=inner)
    yield _plain("state", "mamba.dt_proj.bias", inner, units=inner)
    yield _plain("state", "mamba.A_log", inner, width, units=inner)
    yield _plain("state", "mamba.D", inner, units=inner)
    yield Tensor(part="state", name="mamba.out_proj", rows=hidden, cols=inner, units=inner)
    if shape.family.mamba_norms:
        yield _plain("norms", "mamba.dt_b_c_layernorms", dt_rank + 2 * width)


def _mamba2(shape: ModelShape) -> Iterator[Tensor]:
    state, hidden = shape.state, shape.hidden_size
    assert state is not None
    heads, inner, groups = state.value_heads, state.inner_size, state.key_heads * state.key_dim
    channels = inner + 2 * groups
    yield Tensor(part="state", name="mixer.in_proj", rows=2 * inner, cols=hidden, units=heads)
    yield Tensor(part="state", name="mixer.in_proj", rows=2 * groups, cols=hidden, units=state.key_heads)
    yield Tensor(part="state", name="mixer.in_proj", rows=heads, cols=hidden, units=heads)
    yield _plain("state", "mixer.conv1d", channels, state.conv_kernel, units=state.key_heads)
    yield _plain("state", "mixer.conv1d.bias", channels, units=state.key_heads)
    yield _plain("state", "mixer.dt_bias_A_log_D", 3 * heads, units=heads)
    yield _plain("norms", "mixer.norm", inner, units=heads)
    yield Tensor(part="state", name="mixer.out_proj", rows=hidden, cols=inner, units=heads)


def _delta_net(shape: ModelShape) -> Iterator[Tensor]:
    """The gated delta net of Qwen3-Next."""
    state, hidden = shape.state, shape.hidden_size
    assert state is not None
    keys, values, heads = state.key_heads * state.key_dim, state.inner_size, state.value_heads
    yield Tensor(part="state", name="linear_attn.in_proj_qkvz", rows=2 * keys, cols=hidden, units=state.key_heads)
    yield Tensor(part="state", name="linear_attn.in_proj_qkvz", rows=2 * values, cols=hidden, units=heads)
    yield Tensor(part="state", name="linear_attn.in_proj_ba", rows=2 * heads, cols=hidden, units=heads)
    yield _plain("state", "linear_attn.conv1d", 2 * keys + values, state.conv_kernel, units=state.key_heads)
    yield _plain("state", "linear_attn.dt_bias_A_log", 2 * heads, units=heads)
    yield _plain("norms", "linear_attn.norm", state.value_dim)
    yield Tensor(part="state", name="linear_attn.out_proj", rows=hidden, cols=values, units=heads)


def _norm(shape: ModelShape, name: str, size: int) -> Iterator[Tensor]:
    yield _plain("norms", name, size)
    if shape.family.norm_bias:
        yield _plain("norms", f"{name}.bias", size)


def _plain(
    part: Part,
    name: str,
    rows: int,
    cols: int = 1,
    *,
    copies: int = 1,
    units: int = 1,
    place: Place = "first",
) -> Tensor:
    """A tensor that no common checkpoint quantises."""
    return Tensor(part=part, name=name, rows=rows, cols=cols, copies=copies, units=units, linear=False, place=place)
