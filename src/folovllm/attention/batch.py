"""A step's tokens laid out as a flat batch, on the host."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of a step, and where they belong: T tokens of B sequences.

    The tokens of a sequence are neighbours in the batch, in the order of their positions.

    Attributes:
        token_ids: `[T]`.
        positions: of each token in its sequence, `[T]`.
        slots: of each token in the cache, block * block_size + offset, `[T]`.
        query_lens: tokens of each sequence in this step, `[B]`.
        seq_lens: tokens of each sequence up to and with this step's, `[B]`.
        block_table: the cache blocks of each sequence, `[B, width]`, as wide as the longest
            needs; where a sequence has no block it is the null block 0.
        block_size: tokens in a block.
    """

    token_ids: Int64s
    positions: Int64s
    slots: Int64s
    query_lens: Int64s
    seq_lens: Int64s
    block_table: Int32s
    block_size: int

    @property
    def has_single_tokens(self) -> bool:
        """Whether each sequence has one token, as in a step of decoding."""
        return len(self.token_ids) == len(self.query_lens)

    def padded(self, size: int) -> "Batch":
        """Return a batch of single tokens with `size` sequences.

        Padding is a sequence of one token: token 0, in the null block.
        """
        count = len(self.query_lens)
        if count == size:
            return self
        numbers = np.zeros((3, size), np.int64)
        numbers[:, :count] = self.token_ids, self.positions, self.slots
        lengths = np.ones((2, size), np.int64)
        lengths[1, :count] = self.seq_lens
        table = np.zeros((size, self.block_table.shape[1]), np.int32)
        table[:count] = self.block_table
        return Batch(
            numbers[0], numbers[1], numbers[2], lengths[0], lengths[1], table, self.block_size
        )


def lay_out(
    token_ids: Int64s, starts: Int64s, query_lens: Int64s, block_table: Int32s, block_size: int
) -> Batch:
    """Find each token's position and slot.

    Args:
        token_ids: of all sequences, one after another, `[T]`.
        starts: tokens of each sequence before this step's, `[B]`.
        query_lens: tokens of each sequence in this step, `[B]`.
        block_table: the blocks of each sequence, `[B, width]`.
        block_size: tokens in a block.
    """
    rows, positions = np.arange(len(query_lens)), starts
    if len(token_ids) != len(query_lens):
        # Each token's position: the start of its sequence, and how far it is into its part.
        firsts = query_lens.cumsum() - query_lens
        positions = np.arange(len(token_ids)) + np.repeat(starts - firsts, query_lens)
        rows = np.repeat(rows, query_lens)
    blocks = block_table[rows, positions // block_size].astype(np.int64)
    slots = blocks * block_size + positions % block_size
    seq_lens = starts + query_lens
    return Batch(token_ids, positions, slots, query_lens, seq_lens, block_table, block_size)
