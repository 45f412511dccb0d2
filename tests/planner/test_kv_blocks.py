"""vLLM's block accounting: figures from its logs, its own grouping code on the same layers, and laws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import ModelShape, PlannerError, kv_layout, public_models, shape_of_model
from planner.kv_blocks import in_flight_tokens

MODELS = {model.names[0]: model.shape for model in public_models()}
GIB = 1024**3


@pytest.mark.parametrize(
    ("max_model_len", "blocks", "tokens"), [(512, 364, 46_592), (2048, 364, 46_592), (8192, 364, 46_592)]
)
def test_the_figures_of_a_cpu_engine(max_model_len: int, blocks: int, tokens: int) -> None:
    """vLLM 0.32.0 on CPU with 1 GiB of KV cache logs "CPU KV cache size: 46,592 tokens" for SmolLM2-135M."""
    layout = kv_layout(MODELS["SmolLM2-135M"], block_size_tokens=128)
    assert layout.blocks(GIB) == blocks
    capacity = layout.capacity(blocks, max_model_len_tokens=max_model_len, in_flight_tokens=4096)
    assert capacity.tokens == tokens
    assert capacity.max_concurrency == tokens / max_model_len


def test_a_state_sets_the_least_block_size() -> None:
    """vLLM logs "Setting attention block size to 544 tokens" for Qwen3-Next on one device: 1,097,728 B of state
    over 2,048 B per token, in steps of 16."""
    layout = kv_layout(MODELS["Qwen3-Next-80B-A3B"])
    assert MODELS["Qwen3-Next-80B-A3B"].state_bytes_per_layer("linear") == 1_097_728
    assert layout.block_tokens == 544
    assert layout.page_bytes == 544 * 2048
    # 12 layers of full attention, 36 with a state: one group and three.
    assert [group.mixer for group in layout.groups] == ["linear"] * 3 + ["full"]
    assert kv_layout(MODELS["Qwen3-Next-80B-A3B"], tp=2).block_tokens == 544


def test_windows_are_grouped_with_full_layers() -> None:
    """gpt-oss-20b: 12 windowed and 12 full layers share blocks of 12 pages."""
    layout = kv_layout(MODELS["gpt-oss-20b"])
    page = 16 * 2 * 8 * 64 * 2
    assert [len(group.layers) for group in layout.groups] == [12, 12]
    assert layout.block_bytes() == 12 * page
    # A window of 128 tokens touches at most 9 blocks of 16, however long the context.
    assert layout.held_blocks(16_000) == 1000 + 9
    assert layout.held_blocks(100) == 7 + 7
    assert layout.reserved_blocks(16_000, in_flight_tokens=2048) == 1000 + (127 + 2048 + 15) // 16 + 1
    whole = kv_layout(MODELS["gpt-oss-20b"], hybrid=False)
    assert whole.block_bytes() == 24 * page
    assert whole.held_blocks(16_000) == 1000


def test_gemma_3_has_one_full_layer_in_six() -> None:
    layout = kv_layout(MODELS["Gemma-3-27B"])
    assert [len(group.layers) for group in layout.groups] == [9, 9, 9, 9, 8, 8, 10]
    assert [group.mixer for group in layout.groups] == ["sliding"] * 6 + ["full"]


def test_chunked_attention_keeps_everything_by_default() -> None:
    layout = kv_layout(MODELS["Llama-4-Maverick"])
    assert [(group.mixer, len(group.layers)) for group in layout.groups] == [("full", 48)]


def test_pipeline_stages_hold_their_own_layers() -> None:
    llama = MODELS["Llama-3.1-8B"]
    layout = kv_layout(llama, pp=3)
    assert sum(layout.block_bytes(stage=stage) for stage in range(3)) == kv_layout(llama).block_bytes()


def test_steps_in_flight() -> None:
    assert in_flight_tokens(8192) == 16_384
    assert in_flight_tokens(8192, async_scheduling=False) == 8192
    assert in_flight_tokens(8192, pp=4) == 32_768


def test_odd_degrees_and_dtypes_are_refused() -> None:
    with pytest.raises(PlannerError, match="kv_cache_dtype"):
        kv_layout(MODELS["Llama-3.1-8B"], kv_dtype="int3")


shapes = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
splits = st.sampled_from([1, 2, 4, 8])


@given(shape=shapes, tp=splits, pool=st.integers(0, 10**12), more=st.integers(0, 10**12), hybrid=st.booleans())
def test_blocks_stay_within_the_pool(shape: ModelShape, tp: int, pool: int, more: int, hybrid: bool) -> None:
    layout = kv_layout(shape, tp=tp, hybrid=hybrid)
    blocks = layout.blocks(pool)
    assert blocks * layout.block_bytes() <= pool < (blocks + 1) * layout.block_bytes()
    assert layout.blocks(pool + more) >= blocks


@given(shape=shapes, tokens=st.integers(1, 200_000), more=st.integers(0, 50_000), hybrid=st.booleans())
def test_longer_requests_hold_no_fewer_blocks(shape: ModelShape, tokens: int, more: int, hybrid: bool) -> None:
    layout = kv_layout(shape, hybrid=hybrid)
    held, reserved = layout.held_blocks(tokens), layout.reserved_blocks(tokens, in_flight_tokens=2048)
    assert 0 < held <= reserved
    assert held <= layout.held_blocks(tokens + more)
    assert reserved <= layout.reserved_blocks(tokens + more, in_flight_tokens=2048)


@given(shape=shapes, tokens=st.integers(1, 200_000), tp=splits)
def test_held_blocks_hold_the_context(shape: ModelShape, tokens: int, tp: int) -> None:
    layout = kv_layout(shape, tp=tp)
    assert layout.held_blocks(tokens) * layout.block_bytes() >= shape.kv_bytes_of_context(tokens, tp=tp)


@given(shape=shapes, pp=st.integers(1, 8))
def test_every_layer_is_in_one_group(shape: ModelShape, pp: int) -> None:
    layers = [layer for group in kv_layout(shape, pp=pp).groups for layer in group.layers]
    assert len(layers) == len(set(layers)) == shape.num_attention_layers + shape.num_state_layers


NAMES = ["Llama-3.1-8B", "DeepSeek-V3", "gpt-oss-120b", "Gemma-2-27B", "Gemma-3-27B", "Gemma-3-1B", "Mistral-7B"]
NAMES += ["Qwen3-Next-80B-A3B", "Nemotron-H-56B", "Nemotron-3-Nano-30B-A3B", "Jamba-v0.1", "Llama-4-Maverick"]


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_vllm_groups_the_same_layers_alike(name: str, tp: int, hybrid: bool) -> None:
    """Groups, bytes per block and "KV cache size" of vLLM's own functions, given specs of the same layers."""
    kv_cache_utils = pytest.importorskip("vllm.v1.core.kv_cache_utils")
    shape = shape_of_model(name)
    if not hybrid and shape.num_state_layers:
        pytest.skip("vLLM needs its hybrid manager for recurrent layers")
    layout = kv_layout(shape, tp=tp, hybrid=hybrid)
    config, specs = vllm_view(shape, tp=tp, hybrid=hybrid, block_tokens=layout.block_tokens, page=layout.page_bytes)
    groups = kv_cache_utils.get_kv_cache_groups(config, specs)
    theirs = [tuple(sorted(int(layer) for layer in group.layer_names)) for group in groups]
    assert sorted(theirs) == sorted(group.layers for group in layout.groups)
    result = kv_cache_utils.get_kv_cache_config_from_groups(config, groups, 40 * GIB)
    assert result.num_blocks == layout.blocks(40 * GIB)
    in_flight = config.max_in_flight_tokens
    ours = layout.capacity(result.num_blocks, max_model_len_tokens=8192, in_flight_tokens=in_flight)
    assert kv_cache_utils.get_kv_cache_capacity(config, result) == (ours.tokens, ours.max_concurrency)


def vllm_view(
    shape: ModelShape, *, tp: int, hybrid: bool, block_tokens: int, page: int
) -> tuple[SimpleNamespace, dict[str, object]]:
    """The part of vLLM's configuration that its block accounting reads, and a spec for each layer."""
    import torch
    from vllm.v1 import kv_cache_interface as vllm
    from vllm.v1.kv_cache_layout import KVCacheLayout

    layer_first = next(layout for layout in KVCacheLayout if not layout.is_block_outermost)
    chunked = any(layer.mixer == "chunked" for layer in shape.layers)
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=8192),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, tensor_parallel_size=tp),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not hybrid or chunked),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: layer_first,
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
            mamba_cache_mode="align",
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        kv_transfer_config=None,
        max_in_flight_tokens=4096,
    )
    heads = {"num_kv_heads": max(1, shape.num_kv_heads // tp), "head_size": shape.head_dim}
    common = {"block_size": block_tokens, "dtype": torch.bfloat16} | heads
    mla = common | {"num_kv_heads": 1, "head_size": shape.mla_latent_dim}
    window = shape.sliding_window
    state = {"block_size": block_tokens, "shapes": ((1,),), "dtypes": (torch.bfloat16,), "page_size_padded": page}
    makers = {
        "full": lambda: vllm.MLAAttentionSpec(**mla) if shape.mla else vllm.FullAttentionSpec(**common),
        "sliding": lambda: vllm.SlidingWindowSpec(**common, sliding_window=window),
        "chunked": lambda: vllm.ChunkedLocalAttentionSpec(**common, attention_chunk_size=window),
    }
    specs = {
        str(index): makers[layer.mixer]()
        if layer.mixer in makers
        else vllm.MambaSpec(**state, mamba_cache_mode="align")
        for index, layer in enumerate(shape.layers)
        if layer.mixer != "none"
    }
    return config, specs
