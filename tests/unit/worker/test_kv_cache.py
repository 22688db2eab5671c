import resource
import sys
from pathlib import Path

import pytest
import torch

from folovllm.attention.backend import LayerSpec
from folovllm.errors import ConfigError
from folovllm.machine.memory import keep_freed_memory
from folovllm.worker import kv_cache
from folovllm.worker.kv_cache import GIB, KVCache, bytes_per_block, cpu_cache_bytes

LAYERS = [LayerSpec(2, 8, 8), LayerSpec(1, 16, 4)]


@pytest.fixture
def cache():
    made = KVCache(LAYERS, 6, 4, 3, torch.float32, torch.device("cpu"))
    for layer in made.layers:
        for pages in layer:
            for block in range(6):
                pages[block] = block
    return made


def numbers(layers):
    """The number that each block is full of; the same in all layers, keys and values."""
    found = {tuple(pages.flatten(1)[:, 0].tolist()) for layer in layers for pages in layer}
    assert all((pages.flatten(1) == pages.flatten(1)[:, :1]).all() for pages in layers[0])
    assert len(found) == 1
    return list(found.pop())


def test_has_a_tensor_of_its_own_shape_for_each_layer(cache):
    assert cache.layers[0].keys.shape == (6, 3, 2, 8)
    assert cache.layers[1].keys.shape == (6, 3, 1, 16)
    assert cache.layers[1].values.shape == (6, 3, 1, 4)
    assert cache.host_layers[1].values.shape == (4, 3, 1, 4)


def fail_for(shape_of, error):
    """A stand-in for `_zeros` that has no memory for pools of so many blocks."""

    def zeros(shape, dtype, device):
        if shape[0] == shape_of:
            raise error
        return torch.zeros(shape, dtype=dtype)

    return zeros


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (
            6,
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "6 blocks, 0.0 GiB, on cpu; lower num_gpu_blocks_override or cpu_kvcache_space",
        ),
        (6, OSError(12, "Cannot allocate memory"), "6 blocks"),
        (4, OSError(12, "Cannot allocate memory"), "0.0 GiB on the host; lower swap_space"),
        (
            4,
            torch.AcceleratorError("CUDA error: out of memory"),
            "0.0 GiB on the host; lower swap_space",
        ),
    ],
)
def test_no_memory(monkeypatch, blocks, error, message):
    monkeypatch.setattr(kv_cache, "_zeros", fail_for(blocks, error))
    with pytest.raises(ConfigError, match=f"no memory for a KV cache of {message}"):
        KVCache(LAYERS, 6, 4, 3, torch.float32, torch.device("cpu"))


def test_another_error_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(kv_cache, "_zeros", fail_for(6, RuntimeError("CUDA error: no device")))
    with pytest.raises(RuntimeError, match="no device"):
        KVCache(LAYERS, 6, 4, 3, torch.float32, torch.device("cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_memory_is_taken_when_it_is_written_to():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    keep_freed_memory()  # as an engine does: what was freed must not be taken for it
    kept = bytearray(b"x") * 2**27
    del kept
    before = resident()
    made = KVCache(LAYERS[:1], 2**16, 0, 16, torch.bfloat16, torch.device("cpu"))
    pages = made.layers[0].keys
    assert pages.nbytes == 2**25
    assert pages.data_ptr() % 64 == 0
    assert resident() - before < 2**23
    pages.fill_(1)
    assert resident() - before > 2**24
    del made, pages
    assert resident() - before < 2**23


def test_begins_with_zeros():
    made = KVCache(LAYERS, 2, 1, 3, torch.float32, torch.device("cpu"))
    assert numbers(made.layers) == [0, 0]
    assert numbers(made.host_layers) == [0]


def test_copies_read_before_they_write(cache):
    cache.copy(((1, 2), (2, 3)))
    assert numbers(cache.layers) == [0, 1, 1, 2, 4, 5]


def test_swaps_out_and_in(cache):
    cache.swap_out(((5, 0), (2, 3)))
    assert numbers(cache.host_layers) == [5, 0, 0, 2]
    cache.swap_in(((3, 1), (0, 4)))
    assert numbers(cache.layers) == [0, 2, 2, 3, 5, 5]


def test_no_moves_are_no_work(cache):
    cache.swap_out(())
    cache.copy(())
    cache.swap_in(())
    assert numbers(cache.layers) == [0, 1, 2, 3, 4, 5]


def test_clears_blocks(cache):
    cache.layers[0].keys[3] = float("nan")
    cache.clear([3, 4])
    assert numbers(cache.layers) == [0, 1, 2, 0, 0, 5]


def test_counts_the_bytes_of_a_block():
    assert bytes_per_block(LAYERS, 3, torch.float16) == (2 * 16 + 20) * 3 * 2
    made = KVCache(LAYERS, 1, 0, 3, torch.float16, torch.device("cpu"))
    total = sum(pages.numel() * 2 for layer in made.layers for pages in layer)
    assert bytes_per_block(LAYERS, 3, torch.float16) == total


@pytest.mark.parametrize(
    ("free", "asked", "size"),
    [(20 * GIB, None, 4 * GIB), (6 * GIB, None, 3 * GIB), (6 * GIB, 0.5, GIB // 2), (GIB, 1, GIB)],
)
def test_the_size_on_a_cpu(monkeypatch, free, asked, size):
    monkeypatch.setattr(kv_cache, "available_memory", lambda: free)
    assert cpu_cache_bytes(asked) == size


def test_memory_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(kv_cache, "available_memory", lambda: GIB)
    with pytest.raises(ConfigError, match=r"cpu_kvcache_space: got 2 GiB, and 1.0 GiB"):
        cpu_cache_bytes(2)
