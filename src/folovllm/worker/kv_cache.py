"""The tensors of the paged KV cache: how many blocks, made where, and moved how."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch

from folovllm.attention.backend import LayerCache, LayerSpec
from folovllm.core.plan import Moves
from folovllm.errors import ConfigError, is_out_of_memory
from folovllm.machine.memory import available_memory

GIB = 1 << 30
DEFAULT_CPU_SPACE = 4 * GIB


class KVCache:
    """The device's blocks and, where sequences may be swapped out, the host's.

    Args:
        layers: what each layer keeps for a token.
        num_blocks: on the device, block 0 included, which padding may read and write.
        num_host_blocks: in host memory.
        block_size: tokens in a block.
        dtype: of the numbers.
        device: of the first pool.

    Attributes:
        num_blocks: on the device.
        num_host_blocks: in host memory.
        layers: each layer's cache on the device.
        host_layers: each layer's cache in host memory.

    Raises:
        ConfigError: the memory is not there.
    """

    def __init__(
        self,
        layers: list[LayerSpec],
        num_blocks: int,
        num_host_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take the memory; on a CPU the system gives it out as it is first written to."""
        self.num_blocks, self.num_host_blocks = num_blocks, num_host_blocks

        def make(blocks: int, where: torch.device) -> list[LayerCache]:
            shape = (blocks, block_size)
            return [
                LayerCache(
                    _zeros((*shape, layer.num_kv_heads, layer.key_size), dtype, where),
                    _zeros((*shape, layer.num_kv_heads, layer.value_size), dtype, where),
                )
                for layer in layers
            ]

        host = torch.device("cpu")
        gib = bytes_per_block(layers, block_size, dtype) / GIB
        what = f"{num_blocks} blocks, {num_blocks * gib:.1f} GiB, on {device}"
        knob = "gpu_memory_utilization" if device.type == "cuda" else "cpu_kvcache_space"
        with _explain(what, f"num_gpu_blocks_override or {knob}"):
            self.layers = make(num_blocks, device)
        with _explain(f"{num_host_blocks * gib:.1f} GiB on the host", "swap_space"):
            self.host_layers = make(num_host_blocks, host)
            if device.type == "cuda":  # so that the device copies from and to it by itself
                self.host_layers = [
                    LayerCache(*(t.pin_memory() for t in c)) for c in self.host_layers
                ]

    def swap_out(self, moves: Moves) -> None:
        """Copy blocks (device, host) to host memory."""
        _swap(self.layers, self.host_layers, moves)

    def swap_in(self, moves: Moves) -> None:
        """Copy blocks (host, device) back to the device."""
        _swap(self.host_layers, self.layers, moves)

    def copy(self, moves: Moves) -> None:
        """Copy blocks (source, target) on the device."""
        if moves:
            sources, targets = self._send(moves).T
            for layer in self.layers:
                for pages in layer:
                    pages[targets] = pages[sources]

    def clear(self, block_ids: Sequence[int]) -> None:
        """Write zeros: what is not finite in a block would spoil whoever gets it next."""
        if block_ids:
            blocks = self._send(block_ids)
            for layer in self.layers:
                for pages in layer:
                    pages.index_fill_(0, blocks, 0)

    def _send(self, numbers: Sequence[int] | Moves) -> torch.Tensor:
        return torch.tensor(numbers).to(self.layers[0].keys.device, non_blocking=True)


@contextmanager
def _explain(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # torch's, and the system's for what is mapped
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"no memory for a KV cache of {what}; lower {advice}") from error


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, since padding is read too and must be finite.

    On a CPU straight from the system, which gives out pages of zeros as they are written to:
    torch would write all of them at once, and an allocator would, to pages that it had kept.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _swap(sources: list[LayerCache], targets: list[LayerCache], moves: Moves) -> None:
    """Block by block, from pinned memory or to it: nothing waits for these copies but the step."""
    for layer, new_layer in zip(sources, targets, strict=True):
        for pages, new_pages in zip(layer, new_layer, strict=True):
            for source, target in moves:
                new_pages[target].copy_(pages[source], non_blocking=True)


def bytes_per_block(layers: list[LayerSpec], block_size: int, dtype: torch.dtype) -> int:
    """What one block of all layers takes."""
    return sum(layer.numbers for layer in layers) * block_size * dtype.itemsize


def cpu_cache_bytes(space_gib: float | None) -> int:
    """How much memory the cache on a CPU may take.

    Args:
        space_gib: what the user asked for; None takes 4 GiB, or half of what is free if that
            is less.

    Raises:
        ConfigError: the memory asked for is not there.
    """
    free = available_memory()
    if space_gib is None:
        return min(DEFAULT_CPU_SPACE, free // 2)
    if space_gib * GIB > free:
        raise ConfigError(
            f"cpu_kvcache_space: got {space_gib:g} GiB, and {free / GIB:.1f} GiB of memory are "
            "free; ask for less, or leave it unset"
        )
    return int(space_gib * GIB)
