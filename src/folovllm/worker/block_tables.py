"""The block tables of all sequences, kept from step to step."""

from collections.abc import Iterable

import numpy as np

from folovllm.attention.batch import Int32s
from folovllm.core.plan import ScheduledSequence


class BlockTables:
    """One table, a row a sequence: few of its places change from one step to the next.

    A sequence has its row from when it is first scheduled until it is forgotten. The places
    behind its blocks hold the null block 0.
    """

    def __init__(self) -> None:
        """Begin without sequences."""
        self._table: Int32s = np.zeros((16, 16), np.int32)
        self._lengths: list[int] = []  # of the rows given out so far, by row
        self._rows: dict[str, int] = {}
        self._free: list[int] = []

    def update(self, entries: Iterable[ScheduledSequence]) -> list[int]:
        """Take over what a plan says of its sequences' blocks.

        Returns:
            The row of each entry.
        """
        rows, lengths, known = [], self._lengths, self._rows
        for entry in entries:
            row = known.get(entry.seq_id)
            if row is None:
                row = self._take_row(entry.seq_id)
            if entry.block_ids or entry.first_block != lengths[row]:
                self._write(row, entry.first_block, entry.block_ids)
            rows.append(row)
        return rows

    def select(self, rows: list[int], width: int) -> Int32s:
        """Return the first places of some rows, `[len(rows), width]`: a copy."""
        return self._table[:, :width][rows]

    def forget(self, seq_ids: Iterable[str]) -> None:
        """Give the rows of finished sequences to others; unknown ids are fine."""
        for seq_id in seq_ids:
            row = self._rows.pop(seq_id, None)
            if row is not None:
                self._free.append(row)  # its blocks are overwritten by those of the next one

    def _take_row(self, seq_id: str) -> int:
        if self._free:
            row = self._free.pop()
        else:
            row = len(self._lengths)
            self._lengths.append(0)
            if row == len(self._table):
                self._grow(2 * row, self._table.shape[1])
        self._rows[seq_id] = row
        return row

    def _write(self, row: int, first: int, block_ids: tuple[int, ...]) -> None:
        end, old_end = first + len(block_ids), self._lengths[row]
        if end > self._table.shape[1]:
            self._grow(len(self._table), 2 * end)
        self._table[row, first:end] = block_ids
        self._table[row, end:old_end] = 0
        self._lengths[row] = end

    def _grow(self, height: int, width: int) -> None:
        table = np.zeros((height, width), np.int32)
        table[: self._table.shape[0], : self._table.shape[1]] = self._table
        self._table = table
