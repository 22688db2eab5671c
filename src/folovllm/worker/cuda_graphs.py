"""Steps of decoding, captured as CUDA graphs and replayed.

A step of decoding is hundreds of small kernels, which the host starts more slowly than a GPU runs
them. A captured graph starts all of them at once, but with the addresses and shapes that it was
captured with: so its inputs stay where they are, there is a graph for each of some batch sizes,
and a smaller batch is padded to the next of them (the sizes are vLLM's,
`vllm/config/compilation.py`, and finer at the lower end).
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from folovllm.attention.backend import AttentionBackend, AttentionStep, LayerCache
from folovllm.attention.batch import Batch
from folovllm.models.hf_adapter import PagedModel
from folovllm.utils.transfer import pack, unpack
from folovllm.worker.kv_cache import KVCache

logger = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]
Capture: TypeAlias = Callable[[Work], Work]
"""Notes what work a device is given, without doing it, and gives what does the same again."""


def bucket_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes to capture, in ascending order; the last is `most`."""
    sizes = (1, 2, 4, *range(8, 257, 8), *range(272, most, 16))
    return (*(size for size in sizes if size < most), most)


class CudaCapture:
    """Captures graphs on a device, all in one memory pool: only one of them may run at a time."""

    def __init__(self, device: torch.device) -> None:
        """Make the pool; it lives as long as a graph does."""
        self._pool = torch.cuda.graph_pool_handle()
        # torch's own stream for this is one a process, on the device that came first, and what
        # is captured on one stream shares cuBLAS's workspace, which goes with the first graph
        # to go (github.com/pytorch/pytorch/issues/193402).
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """Capture; the work must have been done before, so that its kernels are loaded."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: that they do must not end the capture.
        with (
            torch.cuda.device(self._stream.device),
            # A capture that ends badly leaves its own stream current: this takes it back.
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay


class DecodeGraphs:
    """A model's steps of decoding, ready to be replayed.

    Args:
        model: the model.
        backend: how its layers attend; one that `captures`.
        layers: the cache, which the graphs read and write from then on.
        sizes: the batch sizes, in ascending order.
        block_size: tokens in a block of the cache.
        max_model_len: tokens of the longest sequence.
        capture: how the device's work is captured.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PagedModel,
        backend: AttentionBackend,
        layers: Sequence[LayerCache],
        sizes: tuple[int, ...],
        block_size: int,
        max_model_len: int,
        capture: Capture,
    ) -> None:
        """Take the memory for the inputs, and capture the largest first: others fit in there."""
        self._model, self._backend, self._layers, self._sizes = model, backend, layers, sizes
        self._block_size = block_size
        most, width = sizes[-1], -(-max_model_len // block_size)
        device = model.device
        self._attention = backend.capture(most, width, max_model_len, device)
        self._order = torch.arange(most, device=device)
        largest = pack(self._arrays(self._nobody(most, width)), pinned=False)
        self._received = torch.zeros_like(largest, device=device)
        self._load(self._nobody(most))
        self._logits = torch.empty_like(self._forward(most))
        self._replays = {size: self._capture(size, capture) for size in reversed(sizes)}

    def run(self, batch: Batch) -> torch.Tensor | None:
        """Replay a step; in inference mode.

        Returns:
            The logits of each token `[T, vocabulary]`, valid until the next call; None when it
            is no step of decoding, or larger than what was captured.
        """
        count = len(batch.query_lens)
        place = bisect_left(self._sizes, count)
        if place == len(self._sizes) or not batch.has_single_tokens:
            return None
        size = self._sizes[place]
        self._load(batch.padded(size))
        self._replays[size]()
        return self._logits[:count]

    def _capture(self, size: int, capture: Capture) -> Work:
        self._load(self._nobody(size))
        self._forward(size)  # kernels are loaded, and some compiled, when they first run
        logits = self._logits[:size]
        return capture(lambda: logits.copy_(self._forward(size)))

    def _forward(self, size: int) -> torch.Tensor:
        """Run the model on what was loaded for a batch size."""
        token_ids, positions, *tensors = unpack(self._received, self._arrays(self._nobody(size)))
        metadata = self._attention.metadata(tensors)
        step = AttentionStep(self._backend, self._layers, metadata)
        return self._model.forward(token_ids, positions, step, self._order[:size])

    def _load(self, batch: Batch) -> None:
        """Put a padded batch where the graphs read: one copy to the device."""
        arrays = self._arrays(batch)
        packed = pack(arrays, pinned=self._received.is_cuda)
        self._received[: len(packed)].copy_(packed, non_blocking=True)
        self._attention.load(unpack(self._received, arrays)[2:])

    def _arrays(self, batch: Batch) -> list[np.ndarray]:
        return [batch.token_ids, batch.positions, *self._attention.arrays(batch)]

    def _nobody(self, size: int, width: int = 1) -> Batch:
        """Padding alone."""
        none = np.zeros(0, np.int64)
        table = np.zeros((0, width), np.int32)
        return Batch(none, none, none, none, none, table, self._block_size).padded(size)


@dataclass(slots=True)
class GraphMaker:
    """Captures a model's steps of decoding, or says in the log why it cannot.

    Attributes:
        model: the model.
        backend: how its layers attend; one that `captures`.
        sizes: the batch sizes, in ascending order; none after a failure.
        block_size: tokens in a block of the cache.
        max_model_len: tokens of the longest sequence.
        new_capture: makes what captures the graphs of one `DecodeGraphs`.
        free_memory: bytes that are free on the device.
    """

    model: PagedModel
    backend: AttentionBackend
    sizes: tuple[int, ...]
    block_size: int
    max_model_len: int
    new_capture: Callable[[], Capture]
    free_memory: Callable[[], int]

    def measure(self) -> int:
        """What the graphs will take, in bytes, before the cache takes all that is left.

        Found out by capturing the largest alone, then the largest two, on a cache of one block;
        each of the others takes as much as the second did. Before that the largest is captured
        once for nothing: the first run also loads kernels, which stay and are no graph's.
        """
        model = self.model
        cache = KVCache(model.layers, 1, 0, self.block_size, model.dtype, model.device)
        _, first, both = (self._taken(cache.layers, self.sizes[-count:]) for count in (1, 1, 2))
        return first + max(0, both - first) * (len(self.sizes) - 1) if self.sizes else 0

    def make(self, layers: Sequence[LayerCache]) -> DecodeGraphs | None:
        """Capture all sizes on the engine's cache; None where that fails."""
        before, start = self.free_memory(), time.perf_counter()
        graphs = self._try(layers, self.sizes)
        if graphs is not None:
            logger.info(
                "captured decoding for %d batch sizes up to %d in %.1f s, %.0f MiB",
                len(self.sizes),
                self.sizes[-1],
                time.perf_counter() - start,
                (before - self.free_memory()) / 2**20,
            )
        return graphs

    def _taken(self, layers: Sequence[LayerCache], sizes: tuple[int, ...]) -> int:
        before = self.free_memory()
        graphs = self._try(layers, sizes)  # held until the memory is looked at
        return 0 if graphs is None else max(0, before - self.free_memory())

    def _try(self, layers: Sequence[LayerCache], sizes: tuple[int, ...]) -> DecodeGraphs | None:
        if not sizes:
            return None
        try:
            return DecodeGraphs(
                self.model,
                self.backend,
                layers,
                sizes,
                self.block_size,
                self.max_model_len,
                self.new_capture(),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, steps can run without graphs
            self.sizes = ()
            logger.warning(
                "decoding runs without captured CUDA graphs, and slower: %s", _root(error)
            )
            return None


def free_cuda_memory(device: torch.device) -> int:
    """Bytes that are free on a device, once all is done and what torch keeps is given back."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _root(error: BaseException) -> str:
    """The first of a chain: that a capture ended badly is told last, and why it did first."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
