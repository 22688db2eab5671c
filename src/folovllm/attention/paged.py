"""A step's sequences as tensors, as kernels that read pages where they are want them."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from folovllm.attention.backend import BatchLayout
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


def paged_metadata(layout: BatchLayout) -> PagedMetadata:
    """Make the tensors on the device of the layout's slots, with one copy."""
    arrays = [sums(layout.query_lens), sums(layout.seq_lens), block_table(layout.block_ids)]
    query_ends, seq_ends, table = send(arrays, layout.slots.device)
    return PagedMetadata(
        layout.slots, query_ends, seq_ends, table, max(layout.query_lens), max(layout.seq_lens)
    )


def sums(lengths: list[int]) -> np.ndarray:
    """0, the first length, the first two together, and so on; int32, `[B + 1]`."""
    result = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=result[1:])
    return result


def block_table(block_ids: list[list[int]]) -> np.ndarray:
    """The blocks of each sequence, padded with the null block; int32, `[B, width]`."""
    counts = np.fromiter(map(len, block_ids), np.int64, len(block_ids))
    table = np.zeros((len(block_ids), counts.max()), np.int32)
    table[np.arange(table.shape[1]) < counts[:, None]] = np.fromiter(
        chain.from_iterable(block_ids), np.int32, counts.sum()
    )
    return table
