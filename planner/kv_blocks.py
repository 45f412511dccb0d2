"""vLLM's block accounting: how one memory pool is cut into blocks, and how many a request takes.

Layers that keep the same thing (full attention, a window, a recurrent state) form groups of equal size, and all groups
draw blocks from one pool: a block holds `block_tokens` tokens of every layer of one group. So a model of 10 full and 50
windowed layers has 6 groups of 10; a block costs 10 pages, and a long request takes blocks for the full group by its
length and for the other five by their window. Read in vLLM 0.32: `v1/core/kv_cache_utils.py` (grouping, page sizes),
`v1/kv_cache_interface.py` (blocks per request), `platforms/interface.py` (block size beside recurrent states).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.models import ATTENTION, STATE, Mixer, ModelShape
from planner.split import stage_layers
from planner.types import PlannerError

# vLLM's default block on NVIDIA and AMD; CPU engines use 128.
GPU_BLOCK_SIZE_TOKENS = 16
# Attention kernels read whole pieces of this many tokens; beside recurrent states MLA needs more.
KERNEL_BLOCK_TOKENS = 16
MLA_STATE_BLOCK_TOKENS = 128
# vLLM keeps block 0 as the null block (`v1/core/block_pool.py`); no request may use it.
NULL_BLOCKS = 1
# Recurrent states that a request holds: one, or with prefix caching (mode `align`) also the one before.
STATES_PER_REQUEST = 1
STATES_PER_REQUEST_CACHED = 2


@dataclass(frozen=True, kw_only=True)
class KvGroup:
    """Layers that share a block table."""

    mixer: Mixer
    layers: tuple[int, ...]
    block_tokens: int
    window_tokens: int = 0  # of `sliding` and `chunked` groups
    states: int = 0  # of groups that keep a state

    def reserved_blocks(self, tokens: int, *, in_flight_tokens: int) -> int:
        """The most blocks that vLLM lets a request of `tokens` hold, `in_flight_tokens` of them not yet settled."""
        if self.states:
            return self.states
        if self.mixer == "sliding":
            # One more: a window may begin in the middle of a block.
            return _blocks(min(self.window_tokens - 1 + in_flight_tokens, tokens), self.block_tokens) + 1
        if self.mixer == "chunked":
            tokens = min(self.window_tokens + in_flight_tokens, tokens)
        return _blocks(tokens, self.block_tokens)

    def held_blocks(self, tokens: int) -> int:
        """The blocks that a decoding request of `tokens` holds between two steps."""
        if self.states:
            return self.states
        whole = _blocks(tokens, self.block_tokens)
        if self.mixer == "full":
            return whole
        return min(whole, _blocks(self.window_tokens, self.block_tokens) + 1)


@dataclass(frozen=True, kw_only=True)
class KvCapacity:
    """What vLLM logs at its start: "KV cache size: N tokens, Maximum concurrency for M tokens per request"."""

    blocks: int
    tokens: int
    max_concurrency: float


@dataclass(frozen=True, kw_only=True)
class KvLayout:
    """The groups of one model on one kind of device. `page_bytes` is one layer's part of a block."""

    groups: tuple[KvGroup, ...]
    page_bytes: int
    num_layers: int
    pp: int

    @property
    def block_tokens(self) -> int:
        """Tokens in one block of a group that keeps tokens; what vLLM logs as block size."""
        return self.groups[0].block_tokens

    def block_bytes(self, *, stage: int = 0) -> int:
        """Bytes that one block takes on a device of a pipeline stage: pages of the stage's largest group.

        0 for a stage without any layer that keeps something.
        """
        held = stage_layers(self.num_layers, stage, self.pp)
        return self.page_bytes * max(sum(layer in held for layer in group.layers) for group in self.groups)

    def blocks(self, pool_bytes: int, *, stage: int = 0) -> int:
        """Blocks that fit into `pool_bytes` of one device, the null block included."""
        block_bytes = self.block_bytes(stage=stage)
        return max(0, pool_bytes) // block_bytes if block_bytes else 0

    def reserved_blocks(self, tokens: int, *, in_flight_tokens: int) -> int:
        """As `KvGroup.reserved_blocks`, over all groups."""
        return sum(group.reserved_blocks(tokens, in_flight_tokens=in_flight_tokens) for group in self.groups)

    def held_blocks(self, tokens: int) -> int:
        """As `KvGroup.held_blocks`, over all groups."""
        return sum(group.held_blocks(tokens) for group in self.groups)

    def capacity(self, blocks: int, *, max_model_len_tokens: int, in_flight_tokens: int) -> KvCapacity:
        """vLLM's own start-up figures for a pool of `blocks`; they count the null block as well."""
        per_request = self.reserved_blocks(max_model_len_tokens, in_flight_tokens=in_flight_tokens)
        concurrency = blocks / per_request
        return KvCapacity(blocks=blocks, tokens=int(concurrency * max_model_len_tokens), max_concurrency=concurrency)


def in_flight_tokens(max_num_batched_tokens: int, *, pp: int = 1, async_scheduling: bool = True) -> int:
    """Tokens that may be scheduled and not yet settled: vLLM has two steps in flight, or one per pipeline stage."""
    return max_num_batched_tokens * (2 if async_scheduling and pp == 1 else pp)


def kv_layout(
    shape: ModelShape,
    *,
    kv_dtype: str = "auto",
    block_size_tokens: int = GPU_BLOCK_SIZE_TOKENS,
    tp: int = 1,
    pp: int = 1,
    prefix_caching: bool = True,
    hybrid: bool = True,
) -> KvLayout:
    """The blocks of `shape` as vLLM lays them out. Raises PlannerError for models that keep nothing.

    `hybrid=False` is `--disable-hybrid-kv-cache-manager`, which some KV connectors force: windowed layers beside
    full ones then keep everything. vLLM does the same by itself for chunked attention.
    """
    kept = {mixer: _kept(mixer, shape, hybrid=hybrid) for mixer in shape.mixers()}
    mixers = [kept[layer.mixer] for layer in shape.layers]
    kinds = [mixer for mixer in dict.fromkeys(mixers) if mixer in ATTENTION | STATE]
    if not kinds:
        raise PlannerError("config.json", "layer_types", None, "no layer keeps anything", "name a language model")
    block_tokens, page_bytes = _page(shape, kinds, kv_dtype, block_size_tokens, tp)
    states = STATES_PER_REQUEST_CACHED if prefix_caching else STATES_PER_REQUEST
    buckets = {kind: [index for index, mixer in enumerate(mixers) if mixer == kind] for kind in kinds}
    size = _group_size([len(layers) for layers in buckets.values()])
    groups = [
        KvGroup(
            mixer=kind,
            layers=tuple(layers[part::parts]),
            block_tokens=block_tokens,
            window_tokens=(shape.sliding_window or 0) if kind in ("sliding", "chunked") else 0,
            states=states if kind in STATE else 0,
        )
        for kind, layers in buckets.items()
        for parts in [_blocks(len(layers), size)]
        for part in range(parts)
    ]
    return KvLayout(groups=tuple(groups), page_bytes=page_bytes, num_layers=shape.num_layers, pp=pp)


def _kept(mixer: Mixer, shape: ModelShape, *, hybrid: bool) -> Mixer:
    """What vLLM allocates for a layer: without the hybrid manager a window beside full attention keeps all."""
    layers = shape.mixers()
    promoted = not hybrid or "chunked" in layers
    return "full" if promoted and "full" in layers and mixer in ("sliding", "chunked") else mixer


def _page(shape: ModelShape, kinds: list[Mixer], kv_dtype: str, block_tokens: int, tp: int) -> tuple[int, int]:
    """Tokens of a block and bytes of one layer's page: all pages are alike, so a state sets a least block size."""
    state = next((kind for kind in kinds if kind in STATE), None)
    if state is None:
        return block_tokens, block_tokens * shape.kv_bytes_per_layer(dtype=kv_dtype, tp=tp)
    state_bytes = shape.state_bytes_per_layer(state, tp=tp)
    if len(kinds) == 1:
        return block_tokens, state_bytes
    token_bytes = shape.kv_bytes_per_layer(dtype=kv_dtype, tp=tp)
    step = max(block_tokens, MLA_STATE_BLOCK_TOKENS if shape.mla else KERNEL_BLOCK_TOKENS)
    block_tokens = step * _blocks(state_bytes, step * token_bytes)
    return block_tokens, block_tokens * token_bytes


def _group_size(counts: list[int]) -> int:
    """vLLM takes the rarest kind's count, or the commonest's if that is less than half again as much."""
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
