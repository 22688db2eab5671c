"""A step's sequences as tensors, as kernels that read pages where they are want them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from folovllm.attention.batch import Batch, Int32s, Int64s
from folovllm.utils.transfer import send


@dataclass(frozen=True, slots=True)
class PagedMetadata:
    """What all layers of a step share: B sequences with T tokens.

    Attributes:
        slots: for each token, block * block_size + offset; int64, `[T]`.
        cu_query_lens: where each sequence's tokens begin in the batch, and the end; int32,
            `[B + 1]`.
        cu_seq_lens: the same sums of the sequences' lengths up to and with this step; int32,
            `[B + 1]`.
        block_table: the blocks of each sequence, padded with the null block; int32, `[B, width]`.
        max_query_len: the most tokens of a sequence in this step, or more.
        max_seq_len: the longest sequence, or more.
    """

    slots: torch.Tensor
    cu_query_lens: torch.Tensor
    cu_seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int


class PagedCapture:
    """The tensors that captured steps of decoding read: an `AttentionCapture`.

    Kernels look at nothing of them but addresses, and at the two host numbers of the metadata,
    which only have to be large enough.
    """

    def __init__(self, size: int, width: int, max_seq_len: int, device: torch.device) -> None:
        """Take the memory; arguments as in `AttentionBackend.capture`."""
        self._query_ends = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros(size, width, dtype=torch.int32, device=device)
        self._max_seq_len = max_seq_len

    def arrays(self, batch: Batch) -> list[np.ndarray]:
        """Return slots `[B]`, ends of lengths `[B + 1]` and the block table `[B, used width]`."""
        return [batch.slots, sums(batch.seq_lens), batch.block_table]

    def load(self, tensors: Sequence[torch.Tensor]) -> None:
        """Spread the rows of the table, which arrive side by side, to where each is read."""
        table = tensors[-1]
        self._table[: len(table), : table.shape[1]].copy_(table)

    def metadata(self, tensors: Sequence[torch.Tensor]) -> PagedMetadata:
        """Return what a captured step of that size reads."""
        slots, seq_ends, _ = tensors
        size = len(slots)
        ends, table = self._query_ends[: size + 1], self._table[:size]
        return PagedMetadata(slots, ends, seq_ends, table, 1, self._max_seq_len)


class PagedBackend:
    """What backends share whose kernels take `PagedMetadata`."""

    captures = True

    def build(self, batch: Batch, device: torch.device) -> PagedMetadata:
        """Make the tensors: `AttentionBackend.build`."""
        longest = int(batch.query_lens.max()), int(batch.seq_lens.max())
        ends = sums(batch.query_lens), sums(batch.seq_lens)
        slots, query_ends, seq_ends, table = send([batch.slots, *ends, batch.block_table], device)
        return PagedMetadata(slots, query_ends, seq_ends, table, *longest)

    def capture(
        self, size: int, width: int, max_seq_len: int, device: torch.device
    ) -> PagedCapture:
        """Take the memory that captured steps read: `AttentionBackend.capture`."""
        return PagedCapture(size, width, max_seq_len, device)


def sums(lengths: Int64s) -> Int32s:
    """Return 0, the first length, the first two together, and so on; `[B + 1]`."""
    result = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=result[1:])
    return result
