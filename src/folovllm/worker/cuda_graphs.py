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
from folovllm.attention.paged import PagedMetadata
from folovllm.models.hf_adapter import PagedModel
from folovllm.utils.transfer import pack, unpack
from folovllm.worker.batch import Batch
from folovllm.worker.kv_cache import KVCache

logger = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], object]
Capture: TypeAlias = Callable[[Work], Work]
"""Notes what work a device is given, without doing it, and gives what does the same again."""

_NONE = np.zeros(0, np.int64)
_NOBODY = Batch(_NONE, _NONE, _NONE, [], [], [], [], [], [])


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
        self._max_len = max_model_len
        most, width = sizes[-1], -(-max_model_len // block_size)
        self._rows = TableRows(most, width)
        device = model.device
        self._order = torch.arange(most, device=device)
        self._bounds = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros(most, width, dtype=torch.int32, device=device)
        largest = pack(_arrays(most, _NOBODY, np.zeros((most, width), np.int32)), pinned=False)
        self._received = torch.zeros_like(largest, device=device)
        self._load(most, _NOBODY)
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
        if place == len(self._sizes) or not batch.decodes:
            return None
        self._load(self._sizes[place], batch)
        self._replays[self._sizes[place]]()
        return self._logits[:count]

    def _capture(self, size: int, capture: Capture) -> Work:
        self._load(size, _NOBODY)
        self._forward(size)  # kernels are loaded, and some compiled, when they first run
        logits = self._logits[:size]
        return capture(lambda: logits.copy_(self._forward(size)))

    def _forward(self, size: int) -> torch.Tensor:
        """Run the model on what was loaded for a batch size."""
        numbers, seq_ends = unpack(self._received, _arrays(size, _NOBODY))
        token_ids, positions, slots = numbers
        metadata = PagedMetadata(
            slots, self._bounds[: size + 1], seq_ends, self._table[:size], 1, self._max_len
        )
        step = AttentionStep(self._backend, self._layers, metadata)
        return self._model.forward(token_ids, positions, step, self._order[:size])

    def _load(self, size: int, batch: Batch) -> None:
        """Put a batch, padded to a size, where the graphs read: one copy to the device.

        The table's rows arrive side by side, and are moved there to where each begins at a
        place of its own whatever their width is.
        """
        table = self._rows.update(batch.block_ids, size)
        arrays = _arrays(size, batch, table)
        packed = pack(arrays, pinned=self._received.is_cuda)
        self._received[: len(packed)].copy_(packed, non_blocking=True)
        self._table[:size, : table.shape[1]].copy_(unpack(self._received, arrays)[-1])


class TableRows:
    """The block table on the host, from step to step: few of its rows change between two.

    Args:
        rows: the most sequences.
        width: the most blocks of one.
    """

    def __init__(self, rows: int, width: int) -> None:
        """All null blocks."""
        self._table = np.zeros((rows, width), np.int32)
        self._known: list[list[int]] = [[] for _ in range(rows)]

    def update(self, block_ids: list[list[int]], size: int) -> np.ndarray:
        """The table of these sequences, padded with the null block to `size` rows.

        Returns:
            int32, `[size, width]`, as wide as the longest; valid until the next call.
        """
        padding: list[list[int]] = [[]] * (size - len(block_ids))
        for row, ids in enumerate(block_ids + padding):
            known = self._known[row]
            if ids != known:
                self._table[row, : len(ids)] = ids
                self._table[row, len(ids) : len(known)] = 0
                self._known[row] = ids.copy()
        return self._table[:size, : max(map(len, block_ids), default=1)]


def _arrays(size: int, batch: Batch, *table: np.ndarray) -> list[np.ndarray]:
    """What a graph reads: ids, positions and slots `[3, size]`, ends of lengths `[size + 1]`.

    Padding is a sequence of one token, token 0 in the null block.
    """
    count = len(batch.seq_lens)
    numbers = np.zeros((3, size), np.int64)
    numbers[:, :count] = batch.token_ids, batch.positions, batch.slots
    ends = np.ones(size + 1, np.int32)
    ends[0], ends[1 : count + 1] = 0, batch.seq_lens
    return [numbers, ends.cumsum(dtype=np.int32), *table]


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
