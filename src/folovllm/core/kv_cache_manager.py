"""Which cache blocks a sequence has: taking, sharing, copying, swapping, finding and freeing."""

from collections import Counter
from collections.abc import Iterable, Sequence as Series

from folovllm.core.block_hash import get_block_hash
from folovllm.core.block_pool import BlockPool
from folovllm.core.plan import Moves
from folovllm.request import Sequence, SequenceStatus


class KVCacheManager:
    """Gives sequences their blocks, and plans what is to be moved between blocks for that.

    A step begins with `begin_step` and ends its planning with `take_moves`.

    A block is made findable when it is certain which tokens fill it. For tokens that are known
    that is when they are scheduled, before they are computed: another sequence of the same step
    can share them at once, since each layer writes the keys and values of the whole step before
    any of them is read. `forget` takes that back for a step that failed. For drafts it is when
    they were accepted (`accept`); a rejected one is never found.

    Args:
        num_blocks: blocks on the device, the null block among them.
        block_size: tokens in a block.
        enable_prefix_caching: find the blocks of a prefix that was computed before.
        num_host_blocks: blocks in host memory to swap to, of which the first is not used, as on
            the device; 0 for none.

    Attributes:
        block_size: tokens in a block.
        num_usable_blocks: blocks of the device that sequences can have.
        prefix_cache_queries: prompt tokens that were looked up.
        prefix_cache_hits: prompt tokens of those that were found.

    Raises:
        ValueError: not even one block is there to use.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool,
        num_host_blocks: int = 0,
    ) -> None:
        """Make a manager of empty pools."""
        if num_blocks < 2:
            raise ValueError(
                f"num_blocks must be at least 2, one of them to use and one for padding, "
                f"got {num_blocks}"
            )
        self.block_size = block_size
        self.num_usable_blocks = num_blocks - 1
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._caching = enable_prefix_caching
        self._device = BlockPool(num_blocks)
        self._host = BlockPool(max(num_host_blocks, 1))
        self._swap_out: list[tuple[int, int]] = []
        self._copies: dict[int, list[int]] = {}
        self._swap_in: list[tuple[int, int]] = []
        self._freed_late: list[int] = []
        self._hashed_now: list[int] = []

    @property
    def usage(self) -> float:
        """The share of the usable blocks that sequences have, from 0 to 1."""
        return 1 - self._device.num_free_blocks / self.num_usable_blocks

    @property
    def has_free_blocks(self) -> bool:
        """Whether a block could be handed out."""
        return self._device.num_free_blocks > 0

    def begin_step(self) -> None:
        """Mark the blocks of the last step as computed."""
        self._hashed_now.clear()

    def take_moves(self) -> tuple[Moves, Moves, Moves]:
        """Return the moves that were planned in this step: swaps out, copies, swaps in."""
        copies = tuple((s, target) for s, targets in self._copies.items() for target in targets)
        moves = tuple(self._swap_out), copies, tuple(self._swap_in)
        self._swap_out.clear()
        self._copies.clear()
        self._swap_in.clear()
        self._device.free(self._freed_late)
        self._freed_late.clear()
        return moves

    def forget(self) -> None:
        """Let nothing be found of what this step, which failed, was to compute."""
        for block_id in self._hashed_now:
            self._device.drop_hash(block_id)
        self._hashed_now.clear()

    def find_cached_blocks(self, seq: Sequence) -> list[int]:
        """Return the blocks of the longest prefix that is there, without taking them.

        At least the last token is left to compute, for its logits; with `prompt_logprobs`, all.
        """
        block_ids: list[int] = []
        if self._looks_up(seq):
            for index in range((seq.get_len() - 1) // self.block_size):
                block_id = self._device.find(get_block_hash(seq, index, self.block_size))
                if block_id is None:
                    break
                block_ids.append(block_id)
        return block_ids

    def admit(self, seq: Sequence, cached: Series[int], num_tokens: int) -> bool:
        """Give a sequence its first blocks, if there are enough.

        Args:
            seq: a sequence without blocks.
            cached: what `find_cached_blocks` found for it just now.
            num_tokens: how many tokens are to be computed beyond them.

        Returns:
            Whether there were; if not, nothing has changed.
        """
        start = len(cached) * self.block_size
        count = self._count_blocks(start + num_tokens) - len(cached)
        if count + self._device.count_free(cached) > self._device.num_free_blocks:
            return False
        self._device.share(cached)
        seq.block_ids = [*cached, *self._device.get_new_blocks(count)]
        seq.num_planned_blocks = 0
        seq.num_computed_tokens = start
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens = start
            if self._looks_up(seq):
                self.prefix_cache_queries += seq.get_len()
                self.prefix_cache_hits += start
        self._make_findable(seq, start + num_tokens)
        return True

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Give a sequence the blocks for its next tokens, drafts included, if there are enough.

        A block that it would write to and shares with others is exchanged for a copy.

        Returns:
            Whether there were; if not, nothing has changed.
        """
        start = seq.num_computed_tokens
        size, block_ids = self.block_size, seq.block_ids
        end = start + num_tokens
        # None where drafts were rejected and left it more blocks than it had a use for.
        count = max((end + size - 1) // size - len(block_ids), 0)
        last = start // size  # the block of the next token, which is a new one at its border
        shared = last < len(block_ids) and self._device.ref_counts[block_ids[last]] > 1
        if count or shared:
            if count + shared > self._device.num_free_blocks:
                return False
            if shared:
                self._copy_block(seq, last)
            block_ids.extend(self._device.get_new_blocks(count))
        if end // size > last:
            self._make_findable(seq, min(end, seq.get_len()))
        return True

    def accept(self, seq: Sequence, start: int) -> None:
        """Let the blocks be found that accepted drafts filled.

        Args:
            seq: the sequence, with its tokens and computed tokens as they are after the step.
            start: its computed tokens before the step.
        """
        self._make_findable(seq, seq.num_computed_tokens, start)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, which has no blocks and begins with the same tokens, share all blocks."""
        self._device.share(parent.block_ids)
        child.block_ids = parent.block_ids.copy()
        child.num_planned_blocks = 0
        child.block_hashes = parent.block_hashes.copy()
        child.num_computed_tokens = parent.num_computed_tokens
        child.num_cached_tokens = parent.num_cached_tokens

    def swap_out(self, seq: Sequence) -> bool:
        """Move a sequence's blocks to the host, if there is room; its status is set by callers.

        Returns:
            Whether there was; if not, nothing has changed.
        """
        if len(seq.block_ids) > self._host.num_free_blocks:
            return False
        host_ids = self._host.get_new_blocks(len(seq.block_ids))
        self._swap_out.extend(zip(seq.block_ids, host_ids, strict=True))
        self._release(seq.block_ids)
        seq.block_ids = host_ids
        return True

    def swap_in(self, seq: Sequence, num_tokens: int) -> bool:
        """Move a sequence's blocks back, if there is room for its next tokens as well.

        Returns:
            Whether there was; if not, nothing has changed.
        """
        end = seq.num_computed_tokens + num_tokens
        count = self._count_blocks(end)
        if count > self._device.num_free_blocks:
            return False
        block_ids = self._device.get_new_blocks(count)
        # Shorter by the blocks of the tokens that are still to be computed.
        self._swap_in.extend(zip(seq.block_ids, block_ids, strict=False))
        self._host.free(seq.block_ids)
        seq.block_ids, seq.num_planned_blocks = block_ids, 0
        self._make_findable(seq, min(end, seq.get_len()))
        return True

    def free(self, seq: Sequence) -> None:
        """Take all blocks from a sequence, whose status tells where they are."""
        if seq.status is SequenceStatus.SWAPPED:
            self._host.free(seq.block_ids)
        else:
            self._release(seq.block_ids)
        seq.block_ids = []

    def discard(self, block_ids: Iterable[int]) -> list[int]:
        """Let nobody find blocks of the device in which something is wrong.

        Returns:
            Those that nobody has any more.
        """
        ids = sorted(set(block_ids))
        for block_id in ids:
            self._device.drop_hash(block_id)
        return [block_id for block_id in ids if self._device.ref_counts[block_id] == 0]

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Compare the blocks with their owners, of whom `sequences` has to hold all.

        Raises:
            RuntimeError: a block is leaked, freed while it is owned, or owned by too many.
        """
        device: Counter[int] = Counter()
        host: Counter[int] = Counter()
        for seq in sequences:
            (host if seq.status is SequenceStatus.SWAPPED else device).update(seq.block_ids)
        self._device.check_integrity(device)
        self._host.check_integrity(host)

    def _looks_up(self, seq: Sequence) -> bool:
        return self._caching and seq.sampling_params.prompt_logprobs is None

    def _count_blocks(self, num_tokens: int) -> int:
        return (num_tokens + self.block_size - 1) // self.block_size

    def _make_findable(self, seq: Sequence, end: int, start: int | None = None) -> None:
        """Register the blocks that tokens up to `end` fill, by default from the computed ones."""
        if not self._caching:
            return
        start = seq.num_computed_tokens if start is None else start
        for index in range(start // self.block_size, end // self.block_size):
            block_id = seq.block_ids[index]
            if self._device.set_hash(block_id, get_block_hash(seq, index, self.block_size)):
                self._hashed_now.append(block_id)

    def _copy_block(self, seq: Sequence, index: int) -> None:
        """Exchange a shared block, which keeps an owner at least, for a new one."""
        source = seq.block_ids[index]
        seq.block_ids[index] = self._device.get_new_blocks(1)[0]
        seq.num_planned_blocks = min(seq.num_planned_blocks, index)
        self._copies.setdefault(source, []).append(seq.block_ids[index])
        self._device.free([source])

    def _release(self, block_ids: list[int]) -> None:
        """Free blocks, the last first: the tail of a prefix is of use to the fewest.

        A block that is the source of a copy in this step must not become the target of another
        one, since the copies may be done in any order: it is freed when all are planned.
        """
        for block_id in reversed(block_ids):
            if block_id in self._copies and self._device.ref_counts[block_id] == 1:
                self._freed_late.append(block_id)
            else:
                self._device.free((block_id,))
