"""The blocks of one cache: who is free, who is shared, who can be found by hash."""

from collections import Counter
from collections.abc import Iterable, Sequence

NULL_BLOCK = 0
"""The block that is never handed out: padding may write to it."""


class BlockPool:
    """Blocks 1 to `num_blocks - 1`, each with a count of its owners.

    A block without owners is free. Free blocks wait in a queue and are handed out from its
    front, so the one that was freed longest ago goes first. A free block that has a hash still
    holds what it is known for: it can be found and shared until it is handed out anew, and only
    then loses its hash. That makes the queue the least-recently-used order of the prefix cache
    (`vllm/v1/core/block_pool.py`).

    The queue is a ring of links through two lists, so that a block in its middle is taken out in
    constant time; the null block, which is never in it, is both its ends. Blocks that were never
    handed out stand before all of the ring, in the order of their ids, and are in no list yet:
    a pool of any size costs as much memory as the blocks of it that were used.

    Args:
        num_blocks: all blocks, the null block among them.

    Attributes:
        num_usable_blocks: how many can be owned.
        num_free_blocks: how many of them are free now.
        ref_counts: the number of owners, by block id, of the blocks that were ever handed out;
            read it, and change it by the methods.
    """

    def __init__(self, num_blocks: int) -> None:
        """Make a pool in which every block is free."""
        self.num_usable_blocks = self.num_free_blocks = num_blocks - 1
        self.ref_counts = [0]
        self._next = [NULL_BLOCK]
        self._previous = [NULL_BLOCK]
        self._hashes: list[bytes | None] = [None]
        self._by_hash: dict[bytes, int] = {}

    def get_new_blocks(self, count: int) -> list[int]:
        """Hand out blocks, each with one owner.

        Raises:
            RuntimeError: fewer than `count` are free; callers ask before.
        """
        if count > self.num_free_blocks:
            raise RuntimeError(f"{count} blocks asked of {self.num_free_blocks} free ones")
        block_ids = self._get_unused_blocks(count)
        for _ in range(count - len(block_ids)):
            block_id = self._next[NULL_BLOCK]
            self._unlink(block_id)
            self.drop_hash(block_id)
            self.ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def _get_unused_blocks(self, count: int) -> list[int]:
        """Hand out blocks that nobody had before, as many of `count` as there are."""
        first = len(self.ref_counts)
        count = min(count, self.num_usable_blocks + 1 - first)
        if count <= 0:
            return []
        self.ref_counts += [1] * count
        self._next += [NULL_BLOCK] * count
        self._previous += [NULL_BLOCK] * count
        self._hashes += [None] * count
        self.num_free_blocks -= count
        return list(range(first, first + count))

    def share(self, block_ids: Iterable[int]) -> None:
        """Add an owner to each block, which may be a free one found by its hash."""
        for block_id in block_ids:
            if self.ref_counts[block_id] == 0:
                self._unlink(block_id)
            self.ref_counts[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Take an owner from each block; those left without are queued in the order given."""
        for block_id in block_ids:
            self.ref_counts[block_id] -= 1
            if self.ref_counts[block_id] == 0:
                self._append(block_id)

    def count_free(self, block_ids: Sequence[int]) -> int:
        """Return how many of these blocks are free."""
        return sum(self.ref_counts[block_id] == 0 for block_id in block_ids)

    def find(self, block_hash: bytes) -> int | None:
        """Return the block with this hash, owned or free; None if there is none."""
        return self._by_hash.get(block_hash)

    def set_hash(self, block_id: int, block_hash: bytes) -> bool:
        """Let an owned block be found by its hash.

        Returns:
            Whether it can: where another block has that hash already, that one stays.
        """
        if block_hash in self._by_hash:
            return False
        self._by_hash[block_hash] = block_id
        self._hashes[block_id] = block_hash
        return True

    def drop_hash(self, block_id: int) -> None:
        """Let a block not be found any more; one without a hash may be given too."""
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            del self._by_hash[block_hash]
            self._hashes[block_id] = None

    def check_integrity(self, owners: Counter[int]) -> None:
        """Compare every block with how many owners it should have, by block id.

        Raises:
            RuntimeError: a count is wrong, a free block is not queued or an owned one is, or a
                hash leads to another block.
        """
        queued = self._walk()
        for block_id, count in enumerate(self.ref_counts):
            if count != owners[block_id]:
                raise RuntimeError(
                    f"block {block_id} counts {count} owners and has {owners[block_id]}"
                )
            if (block_id in queued) != (count == 0 and block_id != NULL_BLOCK):
                raise RuntimeError(f"block {block_id} with {count} owners is queued wrongly")
        if owners[NULL_BLOCK]:
            raise RuntimeError("the null block is owned")
        if unknown := [block_id for block_id in owners if block_id >= len(self.ref_counts)]:
            raise RuntimeError(f"blocks {unknown} are owned and were never handed out")
        hashes = {h: i for i, h in enumerate(self._hashes) if h is not None}
        if hashes != self._by_hash:
            raise RuntimeError("the hashes of the blocks and the blocks of the hashes differ")

    def _walk(self) -> set[int]:
        """The queued blocks, by the links."""
        queued: set[int] = set()
        last, block_id = NULL_BLOCK, self._next[NULL_BLOCK]
        while block_id != NULL_BLOCK and block_id not in queued:
            queued.add(block_id)
            if self._previous[block_id] != last:
                raise RuntimeError(f"block {block_id} does not link back to {last}")
            last, block_id = block_id, self._next[block_id]
        if block_id != NULL_BLOCK or self._previous[NULL_BLOCK] != last:
            raise RuntimeError("the queue of free blocks is no ring")
        num_free = len(queued) + self.num_usable_blocks + 1 - len(self.ref_counts)
        if num_free != self.num_free_blocks:
            raise RuntimeError(f"{num_free} blocks are free, {self.num_free_blocks} counted")
        return queued

    def _append(self, block_id: int) -> None:
        last = self._previous[NULL_BLOCK]
        self._next[last] = self._previous[NULL_BLOCK] = block_id
        self._previous[block_id], self._next[block_id] = last, NULL_BLOCK
        self.num_free_blocks += 1

    def _unlink(self, block_id: int) -> None:
        before, after = self._previous[block_id], self._next[block_id]
        self._next[before], self._previous[after] = after, before
        self.num_free_blocks -= 1
