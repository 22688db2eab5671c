"""A step's sequences as tensors, as kernels that read pages where they are want them."""

from dataclasses import dataclass
from itertools import accumulate

import torch

from folovllm.attention.backend import BatchLayout


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
    """Make the tensors on the device of the layout's slots."""
    width = max(map(len, layout.block_ids))
    table = [ids + [0] * (width - len(ids)) for ids in layout.block_ids]

    def on_device(numbers: object) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=layout.slots.device)

    return PagedMetadata(
        layout.slots,
        on_device(list(accumulate(layout.query_lens, initial=0))),
        on_device(list(accumulate(layout.seq_lens, initial=0))),
        on_device(table),
        max(layout.query_lens),
        max(layout.seq_lens),
    )
