"""How many blocks the KV cache gets, and the reasons that are given."""

from types import SimpleNamespace

import pytest
import torch

from folovllm.attention.backend import LayerSpec
from folovllm.attention.sdpa import SdpaBackend
from folovllm.config import EngineConfig
from folovllm.engine import cache_size
from folovllm.engine.cache_size import CacheDemand, resolve_cache
from folovllm.errors import ConfigError
from folovllm.worker.memory import Profile

# A block of 16 tokens takes 4 KiB: 2 heads of 8 + 8 numbers, two layers, float32.
MODEL = SimpleNamespace(
    layers=[LayerSpec(2, 8, 8)] * 2, dtype=torch.float32, device=torch.device("cpu")
)
GPU_MODEL = SimpleNamespace(layers=MODEL.layers, dtype=MODEL.dtype, device=torch.device("cuda"))
BLOCK = 4096
BACKEND = SdpaBackend()


def blocks_of(model=MODEL, max_model_len=64, budget=512, reserved=0, **options):
    """The two numbers, and their reasons."""
    config = EngineConfig.from_options(model="m", **options)
    demand = CacheDemand(config, model, BACKEND, 16, max_model_len, budget, reserved)
    (num, why), (num_host, why_host) = resolve_cache(demand)
    return (num, num_host), (why, why_host)


@pytest.fixture
def free(monkeypatch):
    """A function that says how much memory a CPU's cache may have."""

    def set_free(size):
        monkeypatch.setattr(cache_size, "cpu_cache_bytes", lambda space: size)

    return set_free


def test_blocks_on_a_cpu(free):
    free(100 * BLOCK + 5)
    counts, (why, why_host) = blocks_of()
    assert counts == (100, 0)
    assert why.startswith("4 GiB, or half of the free memory where that is less: 0.00 GiB, 24.8 ")
    assert why.endswith("sequences of 64 tokens")
    assert why_host == "a CPU's cache is in host memory already"


def test_memory_that_was_asked_for(free):
    free(100 * BLOCK)
    _, (why, _) = blocks_of(cpu_kvcache_space=1)
    assert why.startswith("asked for (argument cpu_kvcache_space): ")


def test_no_more_blocks_than_all_sequences_at_their_longest(free):
    free(10**6 * BLOCK)
    counts, (why, _) = blocks_of(max_model_len=65, max_num_seqs=3)
    assert counts == (16, 0)
    assert why == "all that 3 sequences can use: 0.00 GiB, 3.0 sequences of 65 tokens"


def test_blocks_that_were_asked_for(free):
    free(100 * BLOCK)
    counts, (why, _) = blocks_of(num_gpu_blocks_override=12345)
    assert counts == (12345, 0)
    assert why.startswith("asked for (argument num_gpu_blocks_override): ")


def test_more_blocks_than_there_is_memory_for(free, monkeypatch):
    free(100 * BLOCK)
    monkeypatch.setattr(cache_size, "available_memory", lambda: 200 * BLOCK)
    assert blocks_of(num_gpu_blocks_override=200)[0] == (200, 0)
    with pytest.raises(
        ConfigError, match=r"num_gpu_blocks_override: got 201; .* GiB .*: 2 to 200 are taken"
    ):
        blocks_of(num_gpu_blocks_override=201)


@pytest.mark.parametrize("size", [2 * BLOCK - 1, 0, -(10**9)])
def test_no_room(free, size):
    free(size)
    with pytest.raises(ConfigError, match=r"no room .*16 tokens takes 0\.0 MiB.*cpu_kvcache_space"):
        blocks_of()


@pytest.mark.parametrize(
    ("bandwidth", "swap_space", "host_blocks", "reason"),
    [
        (1e3, 1, 0, "computing tokens again is faster than swapping them"),
        (1e9, 1, 262_144, "swap_space of 1 GiB, asked for (argument swap_space)"),
        (1e9, 0.5, 131_072, "swap_space of 0.5 GiB, asked for (argument swap_space)"),
        (1e9, 0, 0, "swap_space of 0 GiB, asked for (argument swap_space)"),
    ],
)
def test_blocks_on_a_gpu(monkeypatch, bandwidth, swap_space, host_blocks, reason):
    asked = []

    def profile(*arguments):
        asked.append(arguments)
        return Profile(50 * BLOCK, seconds_a_token=1e-3, copy_bandwidth=bandwidth)

    monkeypatch.setattr(cache_size, "profile_gpu", profile)
    counts, (why, why_host) = blocks_of(
        GPU_MODEL, 4096, 8192, gpu_memory_utilization=0.7, swap_space=swap_space
    )
    assert counts == (50, host_blocks)
    assert why.startswith("what is left of 70% of the GPU's memory: ")
    assert why_host == reason
    assert asked == [(GPU_MODEL, BACKEND, 16, 8192, 256, 4096, 0.7)]


def test_blocks_beside_what_is_reserved(free):
    free(100 * BLOCK)
    assert blocks_of(reserved=30 * BLOCK)[0] == (70, 0)
