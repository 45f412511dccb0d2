"""What one step asks of one device: a model, its formats and its split, boiled down to some thirty numbers.

FLOP count a multiply and an add as two; bytes are those that cross the memory bus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from planner.models import ModelShape
from planner.perf.arrays import Array, Table
from planner.quantisations import Quantisation, quantisation
from planner.split import Split
from planner.tensors import Tensor
from planner.types import PlannerError, dtype_bytes

BELOW_16_BITS = 16
# Makers of 4-bit checkpoints of expert models pack the experts and leave attention alone.
EXPERTS_ONLY_BITS = 4
NO_EXPERT = r"re:(?!.*\.experts\.)"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model lies over devices, in vLLM's terms: `dp` engine ranks of tp × pp devices; experts over `ep`."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def expert_cut(self) -> int:
        """Into how many pieces each expert is cut: vLLM spreads expert layers over all tp × dp devices."""
        return max(1, self.tp * self.dp // self.ep)


@dataclass(frozen=True, kw_only=True)
class Work(Table):
    """Per device of one tensor-parallel group, summed over all layers of the model (all pipeline stages)."""

    tp: Array
    pp: Array
    dp: Array
    ep: Array
    layers: Array
    moe_layers: Array
    attention_layers: Array
    packed: Array  # share of the dense parameters stored below 16 bits
    experts_packed: Array  # 1 where experts are stored below 16 bits
    hidden_size: Array
    heads: Array  # query heads on this device
    dense_bytes: Array  # read in every step, whatever the batch
    packed_bytes: Array  # those of `dense_bytes` that are stored below 16 bits
    dense_flops_16: Array  # per token, in 16-bit units
    dense_flops_packed: Array  # per token, in the unit of the packed format
    head_bytes: Array
    head_flops: Array  # per sampled token
    expert_bytes: Array  # of one expert, summed over the layers
    expert_flops: Array  # of one token in one expert, summed over the layers
    experts: Array
    experts_per_token: Array
    kv_bytes_full: Array  # read per context token, by layers that see all of it
    kv_bytes_window: Array  # by layers that see a window
    window: Array  # tokens; infinite without
    pair_flops_full: Array  # prefill, per (token, earlier token)
    pair_flops_window: Array
    context_flops: Array  # decode, per sequence and context token
    state_bytes: Array  # recurrent state, per sequence
    state_flops: Array  # per token
    kv_bytes_held: Array  # what the cache on one device gives to one token
    weight_bytes: Array  # resident on one device


def storage(shape: ModelShape, quant: str | None) -> Quantisation:
    """The storage format that people mean by `quant` for this model; None or "" is the checkpoint's own.

    A checkpoint of as many bits keeps its own list of unpacked matrices. Raises PlannerError for unknown words.
    """
    own = shape.quantisation
    if not quant:
        return own
    asked = quantisation(quant.removesuffix("?"), key="quant")
    if asked.weight_bits == own.weight_bits < BELOW_16_BITS:
        alike = asked.name.startswith("int") == own.name.startswith("int")
        return own if alike else replace(asked, ignored=own.ignored)
    if shape.experts and asked.weight_bits <= EXPERTS_ONLY_BITS:
        return replace(asked, ignored=(NO_EXPERT,))
    return asked


@dataclass(frozen=True)
class Like:
    """What tensors have in common that are counted together; `stored_bytes` and `params` are of one of them."""

    part: str
    units: int
    copies: int
    stored_bytes: int
    params: int
    packed: bool

    def share(self, split: Split, amount: int) -> int:
        """One device's part of an amount that belongs to one of them, where experts stay whole."""
        return -(-amount * -(-self.units // split.tp) // self.units)


def like_tensors(shape: ModelShape, stored: Quantisation) -> Counter[Like]:
    """The weights of a model stored so, like ones together: the layers of most models are all alike."""
    plain_bytes = dtype_bytes(shape.dtype)
    return Counter(
        Like(
            part=tensor.part,
            units=tensor.units,
            copies=tensor.copies,
            stored_bytes=tensor.stored_bytes(stored, plain_bytes),
            params=tensor.params,
            packed=_is_packed(tensor, stored),
        )
        for tensor in shape.tensors
    )


def work_of(
    shape: ModelShape,
    layout: Layout,
    stored: Quantisation,
    *,
    kv_dtype: str = "auto",
    tensors: Counter[Like] | None = None,
) -> Work:
    """The Work, of one row, of a model stored as `stored`. Raises PlannerError for a split the model does not allow.

    `tensors` are the model's `like_tensors`, for callers that ask for many layouts.
    """
    if layout.dp < 1:
        raise PlannerError("settings", "dp", layout.dp, "must be at least 1", "set dp to 1")
    Split(tp=layout.tp, pp=layout.pp, ep=layout.ep).check(replace(shape, quantisation=stored))
    alike = like_tensors(shape, stored) if tensors is None else tensors
    sums = _Sums(Split(tp=layout.tp))
    for like, count in alike.items():
        sums.add(like, count)
    experts = _experts(shape, layout, alike)
    held = experts["expert_bytes"] * experts["experts"] / layout.ep + sums.dense + sums.head + sums.embedding
    tied = shape.tied_embeddings
    return Work.row(
        tp=layout.tp,
        pp=layout.pp,
        dp=layout.dp,
        ep=layout.ep,
        layers=shape.num_layers,
        moe_layers=shape.num_moe_layers,
        attention_layers=shape.num_attention_layers,
        packed=sums.packed_params / max(1.0, sums.packed_params + sums.plain_params),
        hidden_size=shape.hidden_size,
        heads=shape.num_attention_heads / layout.tp,
        dense_bytes=sums.dense,
        packed_bytes=sums.packed,
        dense_flops_16=2.0 * sums.plain_params,
        dense_flops_packed=2.0 * sums.packed_params,
        head_bytes=sums.embedding if tied else sums.head,
        head_flops=2.0 * (sums.embedding_params if tied else sums.head_params),
        weight_bytes=held / layout.pp,
        **experts,
        **_attention(shape, layout, kv_dtype),
    )


class _Sums:
    """Bytes and parameters, on one device, of all that is not an expert."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.dense = self.packed = self.head = self.embedding = 0.0
        self.plain_params = self.packed_params = self.head_params = self.embedding_params = 0.0

    def add(self, like: Like, count: int) -> None:
        held_bytes = count * like.share(self.split, like.stored_bytes)
        params = count * like.share(self.split, like.params)
        if like.part == "embedding":
            self.embedding += held_bytes
            self.embedding_params += params
        elif like.part == "lm_head":
            self.head += held_bytes
            self.head_params += params
        elif like.part != "experts":
            self.dense += held_bytes
            if like.packed:
                self.packed += held_bytes
                self.packed_params += params
            else:
                self.plain_params += params


def _is_packed(tensor: Tensor, stored: Quantisation) -> bool:
    packs = tensor.linear and not stored.ignores(tensor.module)
    return packs and stored.weight_bits < BELOW_16_BITS


def _experts(shape: ModelShape, layout: Layout, alike: Counter[Like]) -> dict[str, float]:
    experts = [(like, count) for like, count in alike.items() if like.part == "experts"]
    total = float(shape.num_experts) if experts else 0.0
    pieces = max(1.0, total) * layout.expert_cut
    return {
        "expert_bytes": sum(count * like.stored_bytes for like, count in experts) / pieces,
        "expert_flops": 2.0 * sum(count * like.params for like, count in experts) / pieces,
        "experts": total,
        "experts_per_token": float(shape.experts_per_token),
        "experts_packed": float(any(like.packed for like, _ in experts)),
    }


def _attention(shape: ModelShape, layout: Layout, kv_dtype: str) -> dict[str, float]:
    tp, mixers = layout.tp, shape.mixers()
    full, window = mixers["full"], mixers["sliding"] + mixers["chunked"]
    per_layer = shape.kv_bytes_per_layer(dtype=kv_dtype, tp=tp)
    heads = shape.num_attention_heads / tp
    pair = context = 4.0 * heads * shape.head_dim
    if shape.mla:
        pair = 2.0 * heads * (shape.mla.qk_nope_head_dim + shape.mla.qk_rope_head_dim + shape.mla.v_head_dim)
        context = 2.0 * heads * (2 * shape.mla.kv_lora_rank + shape.mla.qk_rope_head_dim)
    state_flops = (
        6.0 * shape.num_state_layers * shape.state.inner_size * shape.state.key_dim / tp if shape.state else 0.0
    )
    return {
        "kv_bytes_full": float(full * per_layer),
        "kv_bytes_window": float(window * per_layer),
        "window": float(shape.sliding_window or "inf"),
        "pair_flops_full": full * pair,
        "pair_flops_window": window * pair,
        "context_flops": full * context,
        "state_bytes": float(shape.state_bytes_per_request(tp=tp)) if shape.num_state_layers else 0.0,
        "state_flops": state_flops,
        "kv_bytes_held": float(shape.kv_bytes_per_token(dtype=kv_dtype, tp=tp, pp=layout.pp)),
    }
