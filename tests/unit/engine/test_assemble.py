"""The decisions on the way from a configuration to an engine."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from folovllm.attention.backend import LayerSpec
from folovllm.attention.sdpa import SdpaBackend
from folovllm.config import EngineConfig
from folovllm.engine import assemble
from folovllm.engine.assemble import batched_tokens, eos_token_ids
from folovllm.errors import ConfigError
from folovllm.worker.memory import Profile

# A block of 16 tokens takes 4 KiB: 2 heads of 8 + 8 numbers, two layers, float32.
MODEL = SimpleNamespace(
    layers=[LayerSpec(2, 8, 8)] * 2, dtype=torch.float32, device=torch.device("cpu")
)
GPU_MODEL = SimpleNamespace(layers=MODEL.layers, dtype=MODEL.dtype, device=torch.device("cuda"))
BLOCK = 4096
BACKEND = SdpaBackend()


def config(**options):
    return EngineConfig.from_options(model="m", **options)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, []), (7, [7]), (0, [0]), ([2, 5], [2, 5])], ids=str
)
def test_end_of_sequence_ids(given, expected):
    assert eos_token_ids(GenerationConfig(eos_token_id=given)) == expected


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, "cpu", 512),
        ({}, "cuda", 8192),
        ({}, "mps", 2048),
        ({"max_num_batched_tokens": 7}, "cpu", 7),
        ({"enable_chunked_prefill": False}, "cpu", 4096),
        ({"enable_chunked_prefill": False}, "cuda", 8192),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 9}, "cpu", 9),
    ],
    ids=str,
)
def test_tokens_of_a_step(options, device, expected):
    assert batched_tokens(config(**options), device, 4096) == expected


@pytest.fixture
def free(monkeypatch):
    """A function that says how much memory a CPU's cache may have."""

    def set_free(size):
        monkeypatch.setattr(assemble, "cpu_cache_bytes", lambda space: size)

    return set_free


def test_blocks_on_a_cpu(free):
    free(100 * BLOCK + 5)
    assert assemble._count_blocks(config(), MODEL, BACKEND, 16, 64, 512) == (100, 0)


def test_no_more_blocks_than_all_sequences_at_their_longest(free):
    free(10**6 * BLOCK)
    assert assemble._count_blocks(config(max_num_seqs=3), MODEL, BACKEND, 16, 65, 512) == (16, 0)


def test_blocks_that_were_asked_for(free):
    free(100 * BLOCK)
    options = config(num_gpu_blocks_override=12345)
    assert assemble._count_blocks(options, MODEL, BACKEND, 16, 64, 512) == (12345, 0)


@pytest.mark.parametrize("size", [2 * BLOCK - 1, 0, -(10**9)])
def test_no_room(free, size):
    free(size)
    with pytest.raises(ConfigError, match=r"no room .*16 tokens takes 0\.0 MiB.*cpu_kvcache_space"):
        assemble._count_blocks(config(), MODEL, BACKEND, 16, 64, 512)


@pytest.mark.parametrize(
    ("bandwidth", "swap_space", "host_blocks"),
    [(1e3, 1, 0), (1e9, 1, 262_144), (1e9, 0.5, 131_072), (1e9, 0, 0)],
)
def test_blocks_on_a_gpu(monkeypatch, bandwidth, swap_space, host_blocks):
    asked = []

    def profile(*arguments):
        asked.append(arguments)
        return Profile(50 * BLOCK, seconds_a_token=1e-3, copy_bandwidth=bandwidth)

    monkeypatch.setattr(assemble, "profile_gpu", profile)
    options = config(gpu_memory_utilization=0.7, swap_space=swap_space)
    assert assemble._count_blocks(options, GPU_MODEL, BACKEND, 16, 4096, 8192) == (50, host_blocks)
    assert asked == [(GPU_MODEL, BACKEND, 16, 8192, 256, 4096, 0.7)]


def test_blocks_beside_what_is_reserved(free):
    free(100 * BLOCK)
    assert assemble._count_blocks(config(), MODEL, BACKEND, 16, 64, 512, reserved=30 * BLOCK) == (
        70,
        0,
    )


def graphs_of(model, captures, **options):
    attention = SimpleNamespace(name="some", captures=captures)
    return assemble.graph_maker(config(**options), model, attention, 16, 64)


def test_graphs_where_they_can_be_captured(caplog):
    maker = graphs_of(GPU_MODEL, captures=True, max_num_seqs=5)
    assert maker.sizes == (1, 2, 4, 5)
    assert (maker.block_size, maker.max_model_len) == (16, 64)
    assert graphs_of(MODEL, captures=True) is None
    assert graphs_of(GPU_MODEL, captures=True, enforce_eager=True) is None
    assert caplog.text == ""
    with caplog.at_level("INFO"):
        assert graphs_of(GPU_MODEL, captures=False) is None
    assert "no CUDA graphs: the some backend cannot be captured" in caplog.text
