"""Sequences in the order in which they are to be served."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from folovllm.request import Sequence

Key = tuple[int, float, int, int]
"""Priority and arrival time (zeros unless the policy is "priority"), then the order in which
requests came to the engine and the place in the request; unique."""


class RequestQueue:
    """Sequences sorted by their keys, the first to be served first.

    A sorted list: to put in or take out is a binary search and a move of pointers, which even
    with 100,000 waiting sequences takes microseconds.

    Args:
        key: gives a sequence's key, the same as long as it is in the queue.
    """

    def __init__(self, key: Callable[[Sequence], Key]) -> None:
        """Make an empty queue."""
        self._key = key
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Go through the sequences in order; the last ones may be popped meanwhile."""
        return iter(self._sequences)

    def add(self, seq: Sequence) -> None:
        """Put a sequence in its place."""
        insort(self._sequences, seq, key=self._key)

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out.

        Raises:
            ValueError: it is not in the queue.
        """
        index = bisect_left(self._sequences, self._key(seq), key=self._key)
        if index == len(self._sequences) or self._sequences[index] is not seq:
            raise ValueError(f"sequence {seq.seq_id} is not in the queue")
        del self._sequences[index]

    def first(self) -> Sequence:
        """Return the first sequence, which stays."""
        return self._sequences[0]

    def pop_first(self) -> Sequence:
        """Take out the first sequence."""
        return self._sequences.pop(0)

    def pop_last(self) -> Sequence:
        """Take out the last sequence."""
        return self._sequences.pop()
