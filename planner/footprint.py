"""What a GPU engine needs beside weights and KV cache: estimates, each with its source, each replaceable."""

from __future__ import annotations

from dataclasses import dataclass

from planner.engine import MAX_NUM_SEQS, Engine
from planner.models import ModelShape
from planner.types import GIB, dtype_bytes

# The sampler's warm-up sets the peak. llm-d-planner measured on H100 (vLLM, 1,024 sequences) 4.8, 5.6 and 7.4 GiB
# for vocabularies of 128,256, 151,936 and 201,088, at TP 1 as at TP 2: 38 to 40 bytes a sequence and word.
SAMPLER_BYTES_PER_LOGIT = 39

# Measured there too: memory outside PyTorch, alone and with NCCL's buffers.
OTHER_BYTES_ALONE = round(0.15 * GIB)
OTHER_BYTES_PARALLEL = round(0.60 * GIB)

# Assumed: start-up logs name 0.3 to 1 GiB for the default set of captured batch sizes.
GRAPH_BYTES = round(0.5 * GIB)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one device. `None` is estimated; a start-up log of the same engine gives the exact ones."""

    activation_bytes: int | None = None
    graph_bytes: int = GRAPH_BYTES
    other_bytes: int | None = None

    def activation(self, shape: ModelShape, engine: Engine) -> int:
        """Peak of a full batch: the forward pass or the sampler, whichever is more."""
        if self.activation_bytes is not None:
            return self.activation_bytes
        return max(forward_bytes(shape, engine), sampler_bytes(shape, engine))

    def other(self, engine: Engine) -> int:
        if self.other_bytes is not None:
            return self.other_bytes
        return OTHER_BYTES_ALONE if engine.devices == 1 else OTHER_BYTES_PARALLEL


def forward_bytes(shape: ModelShape, engine: Engine) -> int:
    """Numbers alive at once in the widest layer, for a batch of `max_num_batched_tokens`: residual, input, inner."""
    tp, hidden = engine.tp, shape.hidden_size
    attention = (2 * shape.num_attention_heads + 2 * shape.num_kv_heads) * shape.head_dim // tp
    widths = [attention, 3 * shape.intermediate_size // tp if shape.num_dense_layers else 0]
    if shape.experts:
        # Every routed copy of a token has its own row; with whole experts they are not cut.
        cut = tp if engine.ep == 1 else 1
        widths.append(shape.experts.per_token * (3 * shape.experts.intermediate_size // cut + hidden))
    if shape.state:
        widths.append(3 * shape.state.inner_size // tp)
    return engine.max_num_batched_tokens * (2 * hidden + max(widths)) * dtype_bytes(shape.dtype)


def sampler_bytes(shape: ModelShape, engine: Engine) -> int:
    """Logits of one row per sequence, gathered on every device, and the sampler's copies; hidden states beside."""
    seqs = engine.max_num_seqs or MAX_NUM_SEQS
    hidden_bytes = engine.max_num_batched_tokens * shape.hidden_size * dtype_bytes(shape.dtype)
    return seqs * shape.vocab_size * SAMPLER_BYTES_PER_LOGIT + hidden_bytes
